"""Ours: INT8 with SmoothQuant and GPTQ as lab 02 does it. Arguments: BASE WORKSPACE ROWS

ROWS is how many random rows of 256 tokens calibrate.
"""

import sys

import labkit

base, workspace, rows = sys.argv[1:]
lab = labkit.open_lab("02_int8_smoothquant_gptq", workspace=workspace, model=base)

from llmcompressor import oneshot  # noqa: E402  where the lab has it
from llmcompressor.modifiers.gptq import GPTQModifier  # noqa: E402
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier  # noqa: E402

calibration = lab.random_rows(int(rows))
with lab.quantizing("int8-smoothquant-gptq") as job:
    model = job.load()
    oneshot(
        model=model,
        recipe=[
            SmoothQuantModifier(smoothing_strength=0.8),
            GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"], dampening_frac=0.1, actorder=None),
        ],
        dataset=calibration.dataset(),
        max_seq_length=calibration.max_length,
        num_calibration_samples=len(calibration.input_ids),
    )
    job.save(model, calibration)
if job.fallbacks:
    sys.exit(f"GPTQ fell back to round-to-nearest: {', '.join(job.fallbacks)}")
