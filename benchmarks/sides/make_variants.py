"""Makes, untimed, the four variants that the evaluation benchmark scores, as the labs do, and the task file that both
sides score. Arguments: WORKSPACE TASK_FOLDER; prints the path of the task file.
"""

import sys
from dataclasses import asdict
from pathlib import Path

from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

import labkit
from labkit.evaluation import task_files
from labkit.evaluation.child import write_task

workspace, folder = sys.argv[1], Path(sys.argv[2])
lab = labkit.open_lab("02_int8_smoothquant_gptq", workspace=workspace)
profile, task = lab.profile, lab.profile.main_task
for variant, scheme in (("fp8-dynamic", "FP8_DYNAMIC"), ("int8-rtn", "W8A8")):
    with lab.quantizing(variant) as job:
        model = job.load()
        oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"]))
        job.save(model)
rows = lab.calibration_rows(64)
with lab.quantizing("int8-smoothquant-gptq") as job:
    model = job.load()
    oneshot(
        model=model,
        recipe=[
            SmoothQuantModifier(smoothing_strength=profile.smoothing_strength),
            GPTQModifier(
                targets="Linear",
                scheme="W8A8",
                ignore=["lm_head"],
                dampening_frac=profile.dampening_frac,
                actorder=None,
            ),
        ],
        dataset=rows.dataset(),
        max_seq_length=rows.max_length,
        num_calibration_samples=len(rows.input_ids),
    )
    job.save(model, rows)

files = task_files(task, folder, rows=task.limit, seed=profile.seed)
about = {"tasks": {task.name: asdict(files)}, "scratch": str(folder)}
print(f"task file: {write_task(about, {'task': task.name, 'num_fewshot': task.num_fewshot})}")
