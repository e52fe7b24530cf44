"""Measured memory: a model's memory comes back though its name is kept, and a block's peak is seen."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit.memory import peak, process_bytes, release
from tests.models import make_model

MIB = 2**20


def in_fresh_process(source: str, *arguments: str) -> Any:
    """What a script prints as JSON; alone in its process, since allocators remember what was there before."""
    done = subprocess.run([sys.executable, "-c", source, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


RELEASE = """
import json, sys
import torch, transformers
from labkit.memory import process_bytes, release
torch.set_num_threads(1)
before = process_bytes()
if len(sys.argv) > 1:
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
else:
    config = transformers.LlamaConfig(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=3,
                                      num_attention_heads=16, num_key_value_heads=16)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
also, head = model, model.lm_head
size = sum(p.nbytes for p in model.parameters())
with torch.inference_mode():
    model(input_ids=torch.ones(1, 32, dtype=torch.long))
freed = release(model)
print(json.dumps({"size": size, "start": before, "before": freed.before_bytes, "after": freed.after_bytes,
                  "where": freed.where, "now": process_bytes(), "kept": [also is model, head.weight.is_meta]}))
"""


QUANTIZED = """
import json, sys, tempfile
import transformers
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from labkit.memory import process_bytes, release
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme="INT8", ignore=["lm_head"]))
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder, save_compressed=True)
size = sum(p.nbytes for p in model.parameters())
freed = release(model)
print(json.dumps({"size": size, "freed": freed.freed_bytes, "meta": all(p.is_meta for p in model.parameters())}))
"""


def assert_gave_back(found: dict[str, Any]) -> None:
    assert found["size"] > 500 * 10**6
    assert found["before"] - found["start"] > 0.95 * found["size"]
    assert found["before"] - found["after"] >= 0.9 * found["size"]
    assert found["now"] == pytest.approx(found["after"], abs=5 * MIB)
    assert found["where"] == "process"
    assert found["kept"] == [True, True]


def test_release_gives_back_a_500_mb_model_although_names_still_point_to_it() -> None:
    assert_gave_back(in_fresh_process(RELEASE))


def test_release_gives_back_a_model_that_was_loaded_from_a_checkpoint(tmp_path: Path) -> None:
    wide = {"hidden": 2048, "layers": 3, "intermediate_size": 16384}
    folder = make_model(tmp_path / "model", "llama", **wide)  # type: ignore[arg-type]
    assert_gave_back(in_fresh_process(RELEASE, str(folder)))


def test_release_gives_back_a_model_that_llm_compressor_has_quantized_and_saved(tmp_path: Path) -> None:
    wide = {"hidden": 1024, "layers": 2, "intermediate_size": 16384}
    found = in_fresh_process(QUANTIZED, str(make_model(tmp_path / "model", "llama", **wide)))  # type: ignore[arg-type]
    assert found["size"] > 100 * 10**6
    assert found["freed"] >= 0.9 * found["size"]
    assert found["meta"]


def test_a_released_model_refuses_to_run_and_tensors_taken_out_before_stay_whole() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight  # tied
    kept = model[0].weight.detach()
    copy = kept.clone()
    model(torch.ones(1, 4)).sum().backward()
    release(model)
    assert all(parameter.is_meta and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(kept, copy)
    with pytest.raises((RuntimeError, NotImplementedError)):
        model(torch.ones(1, 4)).sum().item()


def test_a_blocks_peak_is_seen_although_it_is_gone_at_its_end() -> None:
    with peak() as outer:
        with peak() as inner:
            block = torch.ones(400 * MIB, dtype=torch.uint8)
            time.sleep(0.2)
            del block
        with peak() as quiet:
            time.sleep(0.05)
    assert 390 * MIB < inner.grown_bytes < 600 * MIB
    assert outer.peak_bytes >= inner.peak_bytes
    assert quiet.grown_bytes < 100 * MIB
    assert inner.before_bytes <= inner.peak_bytes
    assert process_bytes() < inner.peak_bytes - 300 * MIB


def test_a_block_that_fails_is_measured_too_and_its_error_goes_on() -> None:
    seen = []

    def fail() -> None:
        with peak() as memory:
            seen.append(memory)
            block = torch.ones(200 * MIB, dtype=torch.uint8)
            raise ZeroDivisionError(block.shape)

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen[0].grown_bytes > 190 * MIB


def test_memory_is_importable_without_torch() -> None:
    source = "import sys, labkit.memory; labkit.memory.process_bytes(); print(int('torch' in sys.modules))"
    assert in_fresh_process(source) == 0
