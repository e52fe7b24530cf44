"""What lab 08 tells of llm-compressor's calibration by several processes: where this fails, the lab's words can go."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

READS = """
import sys
import torch.distributed as dist
from datasets import Dataset
from llmcompressor.args import DatasetArguments
from llmcompressor.datasets.utils import get_calibration_dataloader

dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[1]), world_size=2)
rows = Dataset.from_dict({"input_ids": [[number] * 4 for number in range(8)]})
loader = get_calibration_dataloader(DatasetArguments(dataset=rows, num_calibration_samples=8), None)
print("read", sorted(batch["input_ids"][0][0].item() for batch in loader))
dist.barrier()
"""


@pytest.mark.long
def test_llm_compressor_lets_every_process_read_the_same_first_part(tmp_path: Path) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", READS, rank, str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True)
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=120)[0] for process in started]
    read = [ast.literal_eval(line[5:]) for out in said for line in out.splitlines() if line.startswith("read ")]
    assert read == [[0, 1, 2, 3]] * 2
