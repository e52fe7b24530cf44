"""One quantize as the labs do it, without its imports. Arguments: ANSWER METHOD BASE WORKSPACE ROWS

METHOD is fp8-shards or gptq. ANSWER gets {"size": parameters, "seconds", "peak_bytes": what it added at most}.
"""

import json
import sys
from pathlib import Path

import labkit

answer, method, base, workspace, rows = sys.argv[1:]
lab = labkit.open_lab("01_fp8_rtn", workspace=workspace, model=base)

from llmcompressor import model_free_ptq, oneshot  # noqa: E402  where the labs have them
from llmcompressor.modifiers.gptq import GPTQModifier  # noqa: E402
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier  # noqa: E402

if method == "gptq":
    calibration = lab.random_rows(int(rows))
    recipe = [
        SmoothQuantModifier(smoothing_strength=0.8),
        GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"], dampening_frac=0.1, actorder=None),
    ]
    with lab.quantizing("grown") as job:
        model = job.load()
        oneshot(
            model=model,
            recipe=recipe,
            dataset=calibration.dataset(),
            max_seq_length=calibration.max_length,
            num_calibration_samples=int(rows),
        )
        job.save(model, calibration)
else:
    with lab.quantizing("grown") as job, job.folder("model_free_ptq, FP8_DYNAMIC") as folder:
        model_free_ptq(lab.base, folder, scheme="FP8_DYNAMIC", ignore=["lm_head", "re:.*embed_tokens$"])
parameters = sum(path.stat().st_size for path in Path(base).glob("*.safetensors")) // 2
found = {"size": parameters, "seconds": job.wall_seconds, "peak_bytes": job.peak_bytes - job.before_bytes}
Path(answer).write_text(json.dumps(found))
