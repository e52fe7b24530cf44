"""Ours: all variants in one call of labkit.evaluation. Arguments: WORKSPACE ANSWER VARIANT...

ANSWER gets {variant: {"value": ..., "samples": path}} as JSON.
"""

import json
import sys
from pathlib import Path

from labkit.evaluation import Request, evaluate
from labkit.profiles import TINY
from labkit.workspace import Workspace

workspace, answer, *variants = sys.argv[1:]
room = Workspace(Path(workspace))
done = evaluate(
    [Request(variant, room.checkpoint(variant), TINY.main_task) for variant in variants],
    workspace=room,
    engine=TINY.engine,
    offline=True,
    seed=TINY.seed,
    log=room.root / "evaluation.log",
)
Path(answer).write_text(
    json.dumps({e.request.variant: {"value": e.value, "samples": str(e.samples)} for e in done}), encoding="utf-8"
)
