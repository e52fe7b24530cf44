"""One evaluation of the embedded model, from the first sample to the last. Arguments: ANSWER WORKSPACE SAMPLES

ANSWER gets {"size": samples, "seconds", "peak_bytes": null}; the engine's start is not in the seconds.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import labkit
from labkit.evaluation import Request, evaluate

answer, workspace, samples = sys.argv[1:]
lab = labkit.open_lab("03_evaluation", workspace=workspace)
task = replace(lab.profile.main_task, limit=int(samples))
(done,) = evaluate(
    [Request("bf16", lab.base, task)],
    workspace=lab.workspace,
    engine=lab.profile.engine,
    offline=True,
    seed=lab.profile.seed,
    log=Path(workspace) / "evaluation.log",
)
assert done.n == int(samples)
Path(answer).write_text(json.dumps({"size": done.n, "seconds": done.wall_seconds, "peak_bytes": None}))
