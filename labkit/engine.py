"""Engines live in a child process: a script goes in, a JSON answer comes out, and the memory is back when it ends.

vLLM keeps memory, threads and process groups that no `del` returns, and it may be installed in another interpreter
than the labs' (`LABKIT_ENGINE_PYTHON`). So whatever needs it runs by `run_script`: the notebook shows the script, this
module runs it under supervision, and vLLM's chatter goes to a log file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import hardware, processes
from labkit.errors import ProcessFailed, UsageError
from labkit.modelfolder import refuse_unsafe

if TYPE_CHECKING:
    from labkit.profiles import Engine

CHILD = Path(__file__).with_name("engine_child.py")
LONGEST_SOCKET_FOLDER = 107 - len("/00000000-0000-0000-0000-000000000000")


def engine_env(engine: Engine, offline: bool) -> dict[str, str]:
    """The environment that an engine is started with; vLLM reads most of it when it is imported.

    Without `VLLM_CPU_KVCACHE_SPACE` (whole GiB) the CPU build takes what it finds and may refuse to start. One process
    for engine and caller (`VLLM_ENABLE_V1_MULTIPROCESSING=0`) starts faster and reports its errors as exceptions. A
    server's engine is a process of its own all the same; what that spares there is the CPU build's third one, the
    worker, and its talk with the engine: 32 requests to 24 narrow layers took 18 s with it and 14 s without, in INT8
    13.5 and 9.5, on two cores.
    """
    env = {
        # Threads that spin while they wait are quick on an idle machine. On a shared one they steal each other's time:
        # GPTQ on two busy cores took over 200 s with spinning threads and 27 s with passive ones.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(engine.kv_cache_gib))),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound threads of two engines would share one core
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    python = shutil.which(processes.engine_python())  # one that is not there is told of when it is to start
    if python and engine.enforce_eager and hardware.engine_build() == "cpu":
        # "Eager" spares the model from torch.compile, and not vLLM's helpers: the first prompt log-probability waited
        # 24 s for the ranks of its tokens to be compiled, in every process anew.
        env["TORCHDYNAMO_DISABLE"] = "1"
    if offline:
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return env


def scratch_env(folder: Path) -> dict[str, str]:
    """Makes `folder` the temporary one of an engine: vLLM leaves sockets and stores there, several each time it ends.

    Where its path is too long for a socket's name (107 bytes) the engine keeps the usual one.
    """
    if len(str(folder)) > LONGEST_SOCKET_FOLDER:
        return {}
    folder.mkdir()
    return {"TMPDIR": str(folder)}


def model_length(folder: Path, engine: Engine) -> int:
    """Tokens that an engine is started for: the profile's `max_model_len`, or what the model's positions allow.

    An engine refuses to be asked for more. Every use of one asks this before, so it is here that a folder which must
    not be loaded is refused: CheckpointError, from `labkit.modelfolder`.
    """
    config = refuse_unsafe(folder)
    text = config.get("text_config", config)
    return min(engine.max_model_len, int(text.get("max_position_embeddings") or engine.max_model_len))


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


# vLLM and torch put "(EngineCore pid=7) ERROR 11-21 08:00:00 [core.py:12] " before what they say.
_PREFIX = re.compile(r"^(\([^)]*\)\s*)?((ERROR|WARNING|INFO|CRITICAL) [\d-]+ [\d:.]+ (\[[^\]]*\]\s?)?)?")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w]*\.)*[A-Za-z_]\w*(Error|Exception|Exit|Interrupt|Missing|Failed)\b(:.*)?$")
_OTHER = re.compile(r"(Segmentation fault|out of memory|No module named|No space left|^cannot start )", re.IGNORECASE)
_ECHO = re.compile(r"See (the )?(root cause|stack trace) above|Engine core (proc|initialization)")


def telling_lines(log: Path, began: int = 0, most: int = 6) -> list[str]:
    """The lines of a log, from byte `began` on, that say why a program failed: its exceptions, first cause first.

    The end of an engine's log is teardown noise and echoes of the error; the exception lines are what a reader needs.
    """
    if not log.exists():
        return []
    with open(log, "rb") as file:
        file.seek(max(began, log.stat().st_size - 2**20))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    plain = [_PREFIX.sub("", line).strip() for line in text.splitlines()]
    found = [line for line in plain if _EXCEPTION.match(line) or _OTHER.search(line)]
    causes = [line for line in dict.fromkeys(found) if not _ECHO.search(line)] or list(dict.fromkeys(found))
    return [line if len(line) <= 500 else line[:497] + "..." for line in causes[:most]] or [
        line for line in plain if line
    ][-most:]
