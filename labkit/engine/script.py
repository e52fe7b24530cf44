"""A script goes into a child with an engine, a JSON answer comes out, and the memory is back when it ends."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import processes
from labkit.engine.environment import engine_env, scratch_env
from labkit.engine.forks import CHILD, launch
from labkit.engine.logs import telling_lines
from labkit.errors import ProcessFailed, UsageError

if TYPE_CHECKING:
    from labkit.profiles import Engine


def run_script(
    source: str,
    argument: Mapping[str, Any],
    *,
    log: Path,
    engine: Engine,
    offline: bool,
    deadline_seconds: float,
    on_tick: Callable[[], None] | None = None,
    env: Mapping[str, str] | None = None,
) -> Any:
    """Runs Python source in a supervised engine child and returns what it leaves in the variable `answer`.

    The source finds `argument` (anything JSON can hold) in the variable `job`. Everything it prints goes to `log`.
    env: more of its environment, such as a key.

    Raises UsageError when `argument` is not JSON, ProcessFailed when the child raises (with the exception's own words),
    is killed, or outlasts `deadline_seconds`.
    """
    try:
        job = json.dumps(dict(argument))
    except TypeError as error:
        raise UsageError(
            f"the script's argument can't be written as JSON: {error}",
            why="it crosses a process border as text",
            fix="pass text, numbers, lists and dictionaries",
        ) from error
    log.parent.mkdir(parents=True, exist_ok=True)
    began = log.stat().st_size if log.exists() else 0
    with tempfile.TemporaryDirectory(prefix="labkit-engine-") as name:
        folder = Path(name)
        (folder / "script.py").write_text(source, encoding="utf-8")
        (folder / "job.json").write_text(job, encoding="utf-8")
        finished = processes.run(
            [processes.engine_python(), str(CHILD), name],
            log,
            deadline_seconds=deadline_seconds,
            env={**engine_env(engine, offline), **scratch_env(folder / "tmp"), **(env or {})},
            on_tick=on_tick,
            launch=launch,
        )
        if finished.returncode == 0 and (folder / "answer.json").exists():
            return json.loads((folder / "answer.json").read_text(encoding="utf-8"))
        raise _failure(finished.returncode, folder / "error.json", log, began)


def _failure(returncode: int, error: Path, log: Path, began: int) -> ProcessFailed:
    """The error that a failed child deserves: its exception if it could tell, and what its log shows."""
    lines = telling_lines(log, began)
    if error.exists():
        told = json.loads(error.read_text(encoding="utf-8"))
        what = f"the engine child failed with {told['type']}: {told['message']}"
        lines = [line for line in lines if not (told["message"] and told["message"] in line)] + told["where"]
    elif returncode == 137:
        what = "the engine child was killed (signal 9); most often that is the kernel, out of memory"
    else:
        what = f"the engine child ended with exit code {returncode} and no answer"
    return ProcessFailed(
        what,
        why="what it tells:\n" + "\n".join(lines) if lines else "its log says nothing of an error",
        fix=f"the whole log is {log}" + ("" if shutil.which(processes.engine_python()) else _no_python()),
    )


def _no_python() -> str:
    return (
        f"; LABKIT_ENGINE_PYTHON names {processes.engine_python()}, which does not exist (labkit's: {sys.executable})"
    )
