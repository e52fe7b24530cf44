"""The `lm_eval` command that a request stands for, as one would type it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from labkit.engine import number_type
from labkit.evaluation.request import Request
from labkit.evaluation.tasks import DEFINITIONS, GENERATED

if TYPE_CHECKING:
    from labkit.profiles import Engine


def command_line(request: Request, engine: Engine, seed: int = 0) -> str:
    """The command for a shell, one option a line.

    A generated task needs one thing more, which labkit adds when it runs: where the rows lie (`dataset_kwargs`).
    """
    task = request.task
    model = {
        "pretrained": str(request.checkpoint),
        "dtype": number_type(engine, request.checkpoint),
        "max_model_len": str(engine.max_model_len),
        "enforce_eager": str(engine.enforce_eager),
        "add_bos_token": str(request.adds_bos),
    }
    if engine.tensor_parallel > 1:
        model["tensor_parallel_size"] = str(engine.tensor_parallel)
    if request.kv_cache_dtype != "auto":
        model["kv_cache_dtype"] = request.kv_cache_dtype
    options = [
        f"--model {request.backend}",
        "--model_args " + shlex.quote(",".join(f"{name}={value}" for name, value in model.items())),
        f"--tasks {task.name}" + (f" --include_path {DEFINITIONS}" if task.name in GENERATED else ""),
        f"--num_fewshot {request.examples} --seed {seed} --batch_size auto --log_samples",
    ]
    if request.templated:
        options.append("--apply_chat_template" + (" --fewshot_as_multiturn" if request.examples else ""))
    if request.rows:
        options.append(f"--limit {request.rows}")
    return " \\\n    ".join(["lm_eval run", *options])
