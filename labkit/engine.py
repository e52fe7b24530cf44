"""Engines live in child processes: a function and its argument go in, its result comes out, the memory is back.

vLLM keeps memory, threads and process groups that no `del` returns. So whatever needs it is a function of some module
that `run` calls in a process of its own. On a CPU that is a fork of Python's fork server, which has imported vLLM once:
the first engine of a process takes twelve seconds to start, each further one three. On a GPU it is a new process.
"""

from __future__ import annotations

import linecache
import multiprocessing
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import Any, TypeVar

from labkit import hardware
from labkit.checkpoint.folder import read_config, refuse_unsafe
from labkit.errors import ProcessFailed
from labkit.process import children_to_log
from labkit.profiles import Engine
from labkit.store import Context

T = TypeVar("T")
R = TypeVar("R")
Tell = Callable[[Any], None]  # what a child says of its progress goes to `run`'s on_progress

PACKED = "pack-quantized"  # compressed-tensors' format of W4A16
# vLLM 0.32 picks CUTLASS's kernel for INT8 on Blackwell, which refuses it; without it vLLM takes Triton's (vllm 54311).
NO_INT8_ON_BLACKWELL = "CutlassInt8ScaledMMLinearKernel"
LONGEST_SOCKET_FOLDER = 107 - len("/00000000-0000-0000-0000-000000000000")
PRELOADED = (  # the entrances of vLLM and lm-eval, and what vLLM imports late, when an engine starts
    "labkit.mends",
    "vllm.entrypoints.llm",
    "vllm.benchmarks.serve",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "lm_eval.tasks",
    "lm_eval.models.vllm_causallms",
    "datasets",
)
# What libraries read when they are loaded, so that the fork server must have it.
EARLY = {
    # Threads that spin while they wait steal each other's time on a shared machine: GPTQ on two busy cores took over
    # 200 s with them and 27 s with passive ones. But waking a sleeping thread takes longer than many of a step's short
    # parallel pieces: a token of a 0.4B model took 66 ms with passive threads, 24 ms with these, which spin a while.
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "300000",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
TORCH_CACHE = "TORCHINDUCTOR_CACHE_DIR"  # made on import, by default in the temporary folder
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # so, too, where it is asked


# --- what an engine is started with -----------------------------------------------------------------------------------


def engine_env(context: Context) -> dict[str, str]:
    """The environment that an engine is started with.

    Without `VLLM_CPU_KVCACHE_SPACE` (whole GiB) the CPU build takes what it finds and may refuse to start. One process
    for engine and caller (`VLLM_ENABLE_V1_MULTIPROCESSING=0`) starts faster and reports its errors as exceptions.
    """
    cache = context.workspace.root / "cache" / "vllm"
    env = {name: os.environ.get(name, value) for name, value in EARLY.items()} | {
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(context.engine.kv_cache_gib))),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound threads of two engines would share one core
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CACHE_ROOT": str(cache),  # what it compiles, for the next start
        TORCH_CACHE: str(cache / "inductor"),
        "PYTHONUNBUFFERED": "1",
    }
    build = hardware.engine_build()
    if build == "cpu":
        # vLLM 0.32's CPU build saves what it compiled ahead of time and can't load it ("'function' object has no
        # attribute 'finalize_loading'"): it compiles again at each start. torch's own cache works.
        env["VLLM_USE_AOT_COMPILE"] = "0"
    if context.engine.enforce_eager and build == "cpu":
        # "Eager" spares the model from torch.compile, and not vLLM's helpers: the first prompt log-probability waited
        # 24 s for the ranks of its tokens to be compiled, in every process anew.
        env["TORCHDYNAMO_DISABLE"] = "1"
    gpu = hardware.this_machine().gpu_of(build)
    if gpu and (gpu.compute_capability or (0, 0)) >= (10, 0):
        others = os.environ.get("VLLM_DISABLED_KERNELS", "").split(",")
        env["VLLM_DISABLED_KERNELS"] = ",".join([*filter(None, others), NO_INT8_ON_BLACKWELL])
    return env | (OFFLINE if context.offline else {})


@contextmanager
def scratch(prefix: str) -> Iterator[dict[str, str]]:
    """A temporary folder for what an engine leaves: vLLM leaves sockets and stores, several each time it ends.

    Where its path is too long for a socket's name (107 bytes) the engine keeps the usual one.
    """
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield {"TMPDIR": folder} if _room_for_sockets(folder) else {}


def _room_for_sockets(folder: str) -> bool:
    return len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER


def model_length(folder: Path, engine: Engine) -> int:
    """Tokens that an engine is started for: the profile's `max_model_len`, or what the model's positions allow.

    An engine refuses to be asked for more. Every use of one asks this before, so it is here that a folder which must
    not be loaded is refused: CheckpointError, from `labkit.checkpoint`.
    """
    config = refuse_unsafe(folder)
    text = config.get("text_config", config)
    return min(engine.max_model_len, int(text.get("max_position_embeddings") or engine.max_model_len))


def number_type(engine: Engine, checkpoint: Path | None = None) -> str:
    """What an engine computes in wherever nothing is quantized, in torch's and vLLM's words: "bfloat16", "float32".

    The engine's own `dtype`, or for "auto" what this machine is fast in: a CPU without units for BF16 converts
    it for every product, and vLLM is two to four times as fast in float32, for up to a third more memory (measured at
    avx2 and at vnni). The packed checkpoint of W4A16 is never served in float32 on a CPU, but in BF16: vLLM's kernel
    for it (`cpu_gemm_wna16`) has no float32.
    """
    row = hardware.capability("bf16")
    wanted = engine.dtype
    if wanted == "auto":
        wanted = "float32" if row.build == "cpu" and row.verdict == "emulated" else "bfloat16"
    if wanted == "float32" and row.build == "cpu" and checkpoint and (checkpoint / "config.json").is_file():
        quantization = read_config(checkpoint).get("quantization_config") or {}
        return "bfloat16" if quantization.get("format") == PACKED else wanted
    return wanted


# --- a function in a process of its own -------------------------------------------------------------------------------


def run(
    work: Callable[[T, Tell], R],
    job: T,
    context: Context,
    *,
    log: Path,
    deadline_seconds: float = 7200.0,
    env: Mapping[str, str] | None = None,
    on_progress: Tell = lambda _: None,
) -> R:
    """Calls `work(job, tell)` in an engine's process and returns what it returns; what it prints goes to `log`.

    work: a function of a module; job, result and what it tells are pickled. env: more of its environment, such as a
    key. Raises ProcessFailed when it raises (with the exception's own words), is killed, or outlasts its deadline.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    began = log.stat().st_size if log.exists() else 0
    with scratch("labkit-engine-") as own:
        environment = {**os.environ, **engine_env(context), **own, **(env or {})}
        processes = _processes(environment, log)
        heard, told = processes.Pipe(duplex=False)
        child = processes.Process(target=_child, args=(work, job, str(log), environment, told), name=work.__qualname__)
        try:
            with told, _no_main_program():
                child.start()
            kind, said = _answer(child, heard, on_progress, time.monotonic() + deadline_seconds)
        except TimeoutError:
            what = f"an engine ({work.__qualname__}) did not end within {deadline_seconds:.0f} s and was stopped"
            raise _failed(what, error_lines(log, began), log) from None
        except (EOFError, ConnectionError):  # it died without a word, or was never there
            if child.pid:
                child.join()
            raise _failed(_death(child.exitcode), error_lines(log, began), log) from None
        finally:
            _end(child)
            heard.close()
    if kind == "failure":
        name, message, where = said
        lines = [line for line in error_lines(log, began) if not (message and message in line)]
        raise _failed(f"the engine failed with {name}: {message}", [*lines, *where], log)
    result: R = said
    return result


def run_source(job: Mapping[str, Any], _: Tell) -> Any:
    """A script as a lab shows it: it finds the job in the global `job`, and leaves its result in `answer`."""
    source, name = job["source"], "script.py"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)  # for tracebacks
    names: dict[str, Any] = {"__name__": "__main__", "job": job}
    exec(compile(source, name, "exec"), names)
    if "answer" not in names:
        raise NameError("the script leaves nothing in `answer`")
    return names["answer"]


def end_fork_server() -> None:
    """Gives back the memory of the process that engines are forked from, unless one runs; the next starts another."""
    server: Any = forkserver._forkserver  # multiprocessing offers no public way
    if server._forkserver_pid is not None and not multiprocessing.active_children():
        os.kill(server._forkserver_pid, signal.SIGKILL)
        server._stop()


def is_helper(pid: int) -> bool:
    """Whether a process is multiprocessing's resource tracker, which stays as long as its Python does."""
    tracker: Any = resource_tracker._resource_tracker
    return bool(pid == tracker._pid)


@contextmanager
def _no_main_program() -> Iterator[None]:
    """Without this multiprocessing runs the main program again in its children, for functions that stand in that."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _processes(environment: Mapping[str, str], log: Path) -> Any:
    """multiprocessing's way to start an engine: on a CPU its fork server, running, with what it must have early.

    What a library reads on import (whether there is a hub) is that of the first engine until the server ends.
    """
    if hardware.engine_build() != "cpu" or not _room_for_sockets(tempfile.gettempdir()):  # the fork server has one
        return multiprocessing.get_context("spawn")
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(list(PRELOADED))
    early = {name: environment[name] for name in (*EARLY, *OFFLINE, TORCH_CACHE) if name in environment}
    before = {name: os.environ[name] for name in early if name in os.environ}
    os.environ.update(early)
    try:
        with children_to_log(log, 1, 2):  # what it prints when it imports would come into the notebook
            forkserver.ensure_running()
    finally:
        for name in early:
            del os.environ[name]
        os.environ.update(before)
    return forking


def _answer(child: Any, heard: connection.Connection, on_progress: Tell, deadline: float) -> tuple[str, Any]:
    """How the child ends: "answer" and its result, or "failure" and the exception's name, words and innermost calls.

    Raises EOFError if it has died, also where a process that it started lives on.
    """
    while connection.wait([heard, child.sentinel], max(0.0, deadline - time.monotonic())):
        if not heard.poll():
            raise EOFError
        kind, said = heard.recv()
        if kind != "progress":
            return kind, said
        on_progress(said)
    raise TimeoutError


def _child(work: Callable[[Any, Tell], Any], job: Any, log: str, environment: Mapping[str, str], told: Any) -> None:
    """What runs in the engine's process."""
    os.setsid()  # a group of its own, with all that it starts
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_the_parent() -> None:
        connection.wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_the_parent, daemon=True).start()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    tempfile.tempdir = None  # found anew, from the environment
    import torch._dynamo

    import labkit.mends  # noqa: F401  in a new process; a fork has it

    torch._dynamo.config.disable = environment.get("TORCHDYNAMO_DISABLE") == "1"
    if fingerprint := sys.modules.get("datasets.fingerprint"):  # forks that draw the same names share cached rows
        fingerprint.fingerprint_rng = random.Random()  # type: ignore[attr-defined]
    try:
        answer = work(job, lambda said: told.send(("progress", said)))
        sys.stdout.flush()  # before the answer, after which this process is ended
        told.send(("answer", answer))
    except BaseException as error:  # noqa: BLE001  any failure is told to whoever started it
        traceback.print_exc()
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        where = [f"{'/'.join(f.filename.split('/')[-3:])}, line {f.lineno}, in {f.name}: {f.line}" for f in frames]
        sys.stdout.flush()
        told.send(("failure", (type(error).__name__, str(error), where)))
    os._exit(0)  # an engine's teardown can only hang or crash now


def _end(child: Any) -> None:
    """Ends a child with all that it started; one whose start failed or was interrupted, with its fork server."""
    if child.pid is None:
        end_fork_server()
        return
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()  # it may have been killed before it had a group of its own
    child.join()
    child.close()


def _death(code: int | None) -> str:
    """What the exit code says of a child that left no answer."""
    if code == -signal.SIGKILL:
        return "the engine was killed (signal 9); most often that is the kernel, out of memory"
    if code in (None, 255):  # multiprocessing's word for a child of which its fork server can tell no more
        return "the process that engines are forked from has ended, most often for want of memory"
    return f"the engine ended with exit code {code} and no answer"


def _failed(what: str, lines: list[str], log: Path) -> ProcessFailed:
    why = "what it tells:\n" + "\n".join(lines) if lines else "its log says nothing of an error"
    return ProcessFailed(what, why, f"the whole log is {log}")


# vLLM and torch put "(EngineCore pid=7) ERROR 11-21 08:00:00 [core.py:12] " before what they say.
_PREFIX = re.compile(r"^(\([^)]*\)\s*)?((ERROR|WARNING|INFO|CRITICAL) [\d-]+ [\d:.]+ (\[[^\]]*\]\s?)?)?")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w]*\.)*[A-Za-z_]\w*(Error|Exception|Exit|Interrupt|Missing|Failed)\b(:.*)?$")
_OTHER = re.compile(r"(Segmentation fault|out of memory|No module named|No space left|^cannot start )", re.IGNORECASE)
_ECHO = re.compile(r"See (the )?(root cause|stack trace) above|Engine core (proc|initialization)")


def error_lines(log: Path, began: int = 0, most: int = 6) -> list[str]:
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
    shown = [line if len(line) <= 500 else line[:497] + "..." for line in causes[:most]]
    return shown or [line for line in plain if line][-most:]
