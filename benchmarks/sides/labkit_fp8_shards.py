"""Ours: FP8 a shard at a time, as lab 01's part on large models does it. Arguments: BASE WORKSPACE"""

import sys

import labkit

base, workspace = sys.argv[1:]
lab = labkit.open_lab("01_fp8_rtn", workspace=workspace, model=base)

from llmcompressor import model_free_ptq  # noqa: E402  where the lab has it

with lab.quantizing("fp8-dynamic") as job, job.folder("model_free_ptq, FP8_DYNAMIC") as folder:
    model_free_ptq(lab.base, folder, scheme="FP8_DYNAMIC", ignore=["lm_head", "re:.*embed_tokens$"])
