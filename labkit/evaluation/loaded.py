"""Scores a model that is in this process: one that computes as no checkpoint can say it (`labkit.simulation`)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from labkit.errors import UsageError
from labkit.evaluation import child
from labkit.evaluation.request import Evaluation, Request
from labkit.evaluation.run import finished, job_request, settings_of
from labkit.evaluation.tasks import task_files
from labkit.hardware import stack_versions
from labkit.profiles import Engine
from labkit.workspace import Workspace

BATCH_ROWS = 64


def evaluate_loaded(
    model: Any,
    tokenizer: Any,
    request: Request,
    *,
    workspace: Workspace,
    engine: Engine,
    about: Mapping[str, Any],
    data: str = "",
    seed: int = 0,
) -> Evaluation:
    """The same lm-eval call as `evaluate` makes in its child, on the model as it stands.

    request: its checkpoint is what the model was made from, and its backend must be hf. about: what was done to the
    model since; it goes into the settings, so that no two such models pass for one. Raises UsageError for another
    backend.
    """
    if request.backend != "hf":
        raise UsageError(f"backend is {request.backend!r} for a model in this process", fix='use backend="hf"')
    files = task_files(request.task, workspace.root / "cache" / "evaluation", data=data, rows=request.rows, seed=seed)
    asked = job_request(0, request, engine) | {"dtype": str(model.dtype).removeprefix("torch.")}
    with tempfile.TemporaryDirectory(prefix="labkit-evaluation-") as scratch:
        job = {
            "tasks": {request.task.name: asdict(files)},
            "engine": asdict(engine),
            "seed": seed,
            "scratch": scratch,
        }
        lm = child.hf_model(job, asked, model, tokenizer=tokenizer, batch_size=BATCH_ROWS)
        result = child.evaluate(lm, job, asked)
    settings = settings_of(request, asked, result, files, engine, seed) | dict(about)
    return finished(request, result, settings, stack_versions(), workspace)
