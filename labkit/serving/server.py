"""vLLM's OpenAI server as a supervised child: on loopback, with a key, ready when it names our model, gone when left.

    with serve(folder, engine=profile.engine, log=log) as server:
        client = openai.OpenAI(base_url=server.url, api_key=server.key)

The server is several processes (API server, engine core, a worker for each of several GPUs). All of them run under
`processes.start`'s guard, so none outlives the block, an error, or this process. vLLM's key guards `/v1` only
(`/metrics` and `/tokenize` answer without it): the real guard is that it listens on 127.0.0.1 and nowhere else.
"""

from __future__ import annotations

import os
import secrets
import shlex
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from labkit import hardware, processes
from labkit.engine import CHILD, engine_env, launch, model_length, number_type, scratch_env, telling_lines
from labkit.errors import ProcessFailed, UsageError
from labkit.profiles import Engine
from labkit.serving.refusals import remedy
from labkit.serving.settings import quick_env

if TYPE_CHECKING:
    import httpx

HOST = "127.0.0.1"
KEY_VARIABLE = "VLLM_API_KEY"  # vLLM looks there; a command line can be read by every user
LOOK_SECONDS = 0.25


class Server:
    """A running server. Made by `serve`; ended by `stop`, by leaving its `with` block, or by this process's end.

    url: the API's base, with `/v1`. key: what requests must carry. model: the name that requests ask for. command: how
    the server would be started by hand. context: tokens that a request and its answer may have together. compiled:
    whether the engine compiled its model. dtype: what it computes in where nothing is quantized. ready_seconds: from
    its start to its first answer, 0 before that.
    """

    def __init__(
        self,
        child: processes.Child,
        scratch: tempfile.TemporaryDirectory[str],
        port: int,
        key: str,
        model: str,
        command: Sequence[str],
        engine: Engine,
        deadline_seconds: float,
    ) -> None:
        import httpx

        self._child, self._scratch = child, scratch
        # One for all questions: each new one reads the certificates of all authorities, 40 ms of a core.
        self._client = httpx.Client(timeout=5.0, trust_env=False, headers={"Authorization": f"Bearer {key}"})
        self._began, self._deadline_seconds = time.monotonic(), deadline_seconds
        self.port, self.key, self.model = port, key, model
        self.context, self.compiled, self.dtype = engine.max_model_len, not engine.enforce_eager, engine.dtype
        self.command = tuple(command)
        self.url = f"http://{HOST}:{port}/v1"
        self.log = child.log
        self.ready_seconds = 0.0
        self._log_begin = 0
        self.loads = 0  # how many were put on it: no two of them send the same prompts

    @property
    def pid(self) -> int:
        """The process that guards the server's processes."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def require_alive(self) -> None:
        """Raises ProcessFailed, with its log's telling lines, if the server has ended."""
        if not self.alive:
            raise self._died("died")

    def is_ready(self) -> bool:
        """Whether it has answered yet. Raises ProcessFailed if it has ended or is late: stop it then."""
        self.require_alive()
        if self.ready_seconds:
            return True
        answers = self.model in _models(self._client, self.url)
        waited = time.monotonic() - self._began
        if answers:
            self.ready_seconds = waited
        elif waited > self._deadline_seconds:
            raise self._died(f"was not ready within {self._deadline_seconds:.0f} s and was stopped")
        return answers

    def wait(self) -> None:
        """Returns once it answers; raises ProcessFailed as `is_ready` does."""
        while not self.is_ready():
            time.sleep(LOOK_SECONDS)

    def stop(self) -> None:
        """Ends all of the server's processes; returns when none is left."""
        self._child.stop()
        self._client.close()
        self._scratch.cleanup()

    def curl(self, key: str = f"${KEY_VARIABLE}") -> str:
        """A command line that asks this server something; `key` is how the shell is to find the key."""
        body = f'{{"model": "{self.model}", "messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 32}}'
        return (
            f'curl {self.url}/chat/completions -H "Authorization: Bearer {key}" '
            f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def __repr__(self) -> str:  # the key must not come into a notebook's output
        return f"Server({self.model!r} at {self.url}, log {self.log})"

    def _died(self, how: str) -> ProcessFailed:
        lines = telling_lines(self.log, self._log_begin)
        return ProcessFailed(
            f"the server of {self.model} on port {self.port} {how}",
            why="its log tells:\n" + "\n".join(lines) if lines else "its log says nothing of an error",
            fix=f"{remedy(lines, self.port)}; the whole log is {self.log}",
        )


def _models(client: httpx.Client, url: str) -> list[str]:
    """The names that a server answers to; none while it does not answer."""
    import httpx

    try:
        answer = client.get(f"{url}/models")
        return [model["id"] for model in answer.json()["data"]] if answer.status_code == 200 else []
    except (httpx.HTTPError, ValueError, KeyError):
        return []


def serve(
    checkpoint: Path,
    *,
    engine: Engine,
    log: Path,
    name: str = "",
    port: int = 0,
    options: Sequence[str] = (),
    cache: Path | None = None,
    offline: bool = True,
    deadline_seconds: float = 600.0,
    wait: bool = True,
) -> Server:
    """Starts a server for a checkpoint and returns once it answers, or with `wait=False` at once.

    name: what requests call the model (default: the folder's name). port: 0 takes a free one. options: more arguments
    of `vllm serve`. cache: where vLLM keeps what it compiles, for the next start. key: from $VLLM_API_KEY, else random.

    Raises UsageError for a port in use or a folder that is no checkpoint, before anything is started; ProcessFailed
    when the server dies or is not ready within `deadline_seconds`. Nothing is left running then.
    """
    if not (checkpoint / "config.json").is_file():
        raise UsageError(f"{checkpoint} has no config.json", fix="give the folder of a checkpoint")
    name = name or checkpoint.resolve().name
    engine = replace(engine, max_model_len=model_length(checkpoint, engine), dtype=number_type(engine, checkpoint))
    port = _free_port() if port == 0 else _require_free(port)
    key = os.environ.get(KEY_VARIABLE) or secrets.token_urlsafe(24)
    command = serve_command(checkpoint, name, port, engine, options)
    env = engine_env(engine, offline) | quick_env(cache) | {KEY_VARIABLE: key}
    scratch = tempfile.TemporaryDirectory(prefix="labkit-server-", ignore_cleanup_errors=True)
    env |= scratch_env(Path(scratch.name) / "tmp")
    log_begin = log.stat().st_size if log.exists() else 0
    child = processes.Child([processes.engine_python(), str(CHILD), *command], log, env, launch=launch)
    server = Server(child, scratch, port, key, name, command, engine, deadline_seconds)
    server._log_begin = log_begin
    try:
        if wait:
            server.wait()
    except BaseException:  # Ctrl-C too: a server that nobody holds must not stay
        server.stop()
        raise
    return server


def serve_command(checkpoint: Path, name: str, port: int, engine: Engine, options: Sequence[str] = ()) -> list[str]:
    """The command line that starts the server, without the key."""
    command = ["vllm", "serve", str(checkpoint), "--served-model-name", name, "--host", HOST, "--port", str(port)]
    command += ["--dtype", engine.dtype, "--max-model-len", str(engine.max_model_len)]
    command += ["--disable-uvicorn-access-log"]  # a line for each request hides what matters in the log
    if hardware.engine_build() == "cuda":
        command += ["--gpu-memory-utilization", str(engine.gpu_memory_utilization)]
    if engine.tensor_parallel > 1:
        command += ["--tensor-parallel-size", str(engine.tensor_parallel)]
    if engine.enforce_eager:
        command += ["--enforce-eager"]
    return [*command, *options]


def compiling(engine: Engine) -> Engine:
    """The same engine, compiling its model if this machine has what that takes (`hardware.compile_lacks` says)."""
    return replace(engine, enforce_eager=bool(hardware.compile_lacks(processes.engine_python())))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])


def _require_free(port: int) -> int:
    if not 1024 <= port <= 65535:
        raise UsageError(f"port is {port}", fix="give one from 1024 to 65535, or 0 for any free one")
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            raise UsageError(
                f"port {port} is in use ({error.strerror})",
                why="another program would answer in the server's place",
                fix="give another port, or 0 for any free one",
            ) from error
    return port
