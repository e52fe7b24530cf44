"""Ours: FP8 as lab 01 does it. Arguments: BASE WORKSPACE"""

import sys

import labkit

base, workspace = sys.argv[1:]
lab = labkit.open_lab("01_fp8_rtn", workspace=workspace, model=base)

from llmcompressor import oneshot  # noqa: E402  where the lab has it
from llmcompressor.modifiers.quantization import QuantizationModifier  # noqa: E402

recipe = QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"])
with lab.quantizing("fp8-dynamic") as job:
    model = job.load()
    oneshot(model=model, recipe=recipe)
    job.save(model)
