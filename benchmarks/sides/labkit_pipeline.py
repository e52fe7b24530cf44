"""Ours: the pipeline, run on this machine. Arguments: WORKSPACE ANSWER LIMIT SCHEME...

ANSWER gets {"wall_seconds", "steps", "scores", "store"} as JSON.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from labkit.pipeline import run_here
from labkit.profiles import EMBEDDED, TINY
from labkit.workspace import Workspace

workspace, answer, limit, *schemes = sys.argv[1:]
done = run_here(
    [EMBEDDED], schemes, profile=TINY.name, workspace=Workspace(Path(workspace).absolute()), limit=int(limit)
)
if done.failed:
    sys.exit(f"the pipeline failed in {', '.join(done.failed)}: {done.said}")
scores = {f"{row['variant']} on {row['task']}": row["value"] for row in done.comparison}
found = {"wall_seconds": done.wall_seconds, "steps": [asdict(step) for step in done.steps], "scores": scores}
found["store"] = done.store
Path(answer).write_text(json.dumps(found), encoding="utf-8")
