"""One process of several that quantize together: `python -m labkit.pipeline.rank JOB`, started by `ranks.py`."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.chatter import to_log
from labkit.faster import faster
from labkit.lab import Lab, open_lab
from labkit.pipeline.recipes import Recipe, recipe_of
from labkit.pipeline.steps import Alone, make, reading

if TYPE_CHECKING:
    from labkit.calibration import CalibrationSet
    from labkit.quantize import Job


def main(job: dict[str, Any]) -> None:
    """Takes part; the first process saves the checkpoint and writes the answer."""
    import torch.distributed as dist

    _join(job)
    lab, first = open_lab("quantize", **job["parameters"]), job["rank"] == 0
    if first:
        _ = lab.base  # one of labkit's own models is written on first use: by one
    dist.barrier()
    if first:
        figures = make(lab, job["variant"], First())
        Path(job["answer"]).write_text(json.dumps(figures), encoding="utf-8")
    else:
        _help(lab, recipe_of(job["variant"]))
        _leave()


def _join(job: dict[str, Any]) -> None:
    import torch
    import torch.distributed as dist
    from llmcompressor.entrypoints import utils

    # oneshot would take away our log's handlers, and with them what GPTQ says
    setattr(utils, "configure_distributed_logger", lambda: None)  # noqa: B010
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(job["rank"])
    else:
        _share_one_memory(job["rank"] == 0)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo", init_method=f"file://{job['meet']}", rank=job["rank"], world_size=job["of"]
    )


def _share_one_memory(first: bool) -> None:
    """On a CPU the processes' weights are the same memory, and llm-compressor 0.14 does not reckon with it.

    GPTQ sends nothing there, and so waits for nothing: whoever was done with its layers of a block went on with the
    other one's as they were before, and up to 8% of the codes of later blocks differed from those of one process.
    SmoothQuant's scales are applied by every process, so twice by two. (On GPUs each process has a copy of the block.)
    """
    import torch.distributed as dist
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier, base

    compress, smooth = GPTQModifier.compress_modules, SmoothQuantModifier._apply_smoothing

    def compress_and_wait(self: GPTQModifier) -> None:
        compress(self)
        dist.barrier()

    def smooth_and_wait(self: SmoothQuantModifier, model: Any) -> None:
        smooth(self, model)  # waits for all before it changes anything: it adds up what they saw
        dist.barrier()

    setattr(GPTQModifier, "compress_modules", compress_and_wait)  # noqa: B010
    setattr(SmoothQuantModifier, "_apply_smoothing", smooth_and_wait)  # noqa: B010
    if not first:
        setattr(base, "update_offload_parameter", lambda *_: None)  # noqa: B010


class First(Alone):
    """What the first process does otherwise than one that is alone."""

    def load(self, job: Job) -> Any:
        """Loads the model strictly, and shows it to the others, who take its weights."""
        from compressed_tensors.offload import from_accelerate
        from compressed_tensors.offload.utils import as_single_threaded

        with as_single_threaded():
            model = job.load()
        from_accelerate(model)
        return model

    def share(self, rows: CalibrationSet) -> CalibrationSet:
        return _share(rows)

    def gather(self, job: Job) -> None:
        """GPTQ's layers were divided among the processes, and so is the log of them."""
        for messages in _exchange([]):
            job.also(messages)

    def leave(self) -> None:
        """Whatever comes after the save would wait for the others."""
        _leave()


def _help(lab: Lab, recipe: Recipe) -> None:
    """What every process but the first does: the same, without loading and without saving."""
    import torch
    from compressed_tensors.offload import from_accelerate
    from compressed_tensors.offload.utils import as_single_threaded
    from llmcompressor.entrypoints.oneshot import oneshot
    from transformers import AutoModelForCausalLM

    rows = lab.calibration_rows(recipe.rows_of(lab.profile))
    log = lab.log(f"rank-{os.environ['RANK']}")
    with to_log(log) as chatter, tempfile.TemporaryDirectory() as nowhere, faster():  # as the first, by `quantizing`
        torch.manual_seed(0)
        with as_single_threaded():
            model = AutoModelForCausalLM.from_pretrained(
                lab.base, device_map="meta", dtype="auto", local_files_only=True, use_safetensors=True
            ).eval()
        from_accelerate(model)
        oneshot(model=model, recipe=recipe.modifiers(lab.profile), **reading(_share(rows)))
        _exchange(chatter.messages)
        model.save_pretrained(nowhere, save_compressed=True)  # compressing is shared work; only the first writes


def _share(rows: CalibrationSet) -> CalibrationSet:
    """This process's part of the rows.

    llm-compressor 0.14 means to divide a data set that all processes have in common, and gives each of them the first
    part: its sampler counts from 0 in every part, and its loader reads from the whole. With data sets that differ it
    divides nothing.
    """
    import torch.distributed as dist

    return replace(rows, input_ids=rows.input_ids[dist.get_rank() :: dist.get_world_size()])


def _exchange(messages: list[str]) -> list[list[str]]:
    import torch.distributed as dist

    found: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(found, messages)
    return found


def _leave() -> None:
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
