"""vLLM's OpenAI server as a supervised child: on loopback, with a key, ready when it names our model, gone when left.

    with serve(folder, context, log=log) as server:
        client = openai.OpenAI(base_url=server.url, api_key=server.key)

The server is several processes (API server, engine core, a worker for each of several GPUs). All of them run under
`labkit.process`'s guard, so none outlives the block, an error, or this process. vLLM's key guards `/v1` only
(`/metrics` and `/tokenize` answer without it): the real guard is that it listens on 127.0.0.1 and nowhere else.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shlex
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from labkit import hardware
from labkit.engine import engine_env, error_lines, model_length, number_type, scratch
from labkit.errors import ProcessFailed, UsageError
from labkit.process import Child
from labkit.profiles import Engine
from labkit.store import Context

HOST = "127.0.0.1"
KEY_VARIABLE = "VLLM_API_KEY"  # vLLM looks there; a command line can be read by every user
LOOK_SECONDS = 0.25
# What vLLM's log says when a server does not start or dies, and what to do then.
_REMEDIES = {
    "address already in use": "another program took port {port} meanwhile: serve again, it takes another port",
    "KV cache (is|memory)|No available memory for the cache blocks|max seq len": (
        "give the cache more room (kv_cache_gib on a CPU, gpu_memory_utilization on a GPU) or ask for a smaller "
        "max_model_len"
    ),
    "out of memory|free memory|cannot allocate|signal 9": (
        "close what else holds memory on this machine, or serve a smaller model or scheme"
    ),
    "static_scaled_fp8_quant|no kernel|Failed to find a kernel|not supported|NotImplementedError|not implemented": (
        "this engine build has no kernel for the scheme: `labkit doctor` shows what it serves and what to take instead"
    ),
    "safetensors|KeyError|not initialized from checkpoint|size mismatch|shape|actorder": (
        "the checkpoint is damaged or of another format than vLLM reads: `labkit.checkpoint.lint(folder)` says more"
    ),
    r"C\+\+ compiler|Python\.h|InductorError|ld returned": "the compiler failed: add --enforce-eager to the options",
}
_READ = "read what the log says; `labkit.checkpoint.lint(folder)` says whether vLLM would take the checkpoint"


class Server:
    """A running server. Made by `serve`; ended by `stop`, by leaving its `with` block, or by this process's end.

    url: the API's base, with `/v1`. key: what requests must carry. model: the name that requests ask for. command: how
    the server would be started by hand. context: tokens that a request and its answer may have together. compiled:
    whether the engine compiled its model. dtype: what it computes in where nothing is quantized. ready_seconds: from
    its start to its first answer. loads: how many were put on it: no two of them send the same prompts. pid: of the
    process that guards the server's processes.
    """

    def __init__(
        self, checkpoint: Path, context: Context, log: Path, name: str, port: int, options: Sequence[str]
    ) -> None:
        engine = context.engine
        self.context, self.dtype = model_length(checkpoint, engine), number_type(engine, checkpoint)
        self.compiled = not engine.enforce_eager
        self.model, self.port, self.log = name or checkpoint.resolve().name, _free_port(port), log
        self.url, self.key = f"http://{HOST}:{self.port}/v1", os.environ.get(KEY_VARIABLE) or secrets.token_urlsafe(24)
        self.ready_seconds, self.loads = 0.0, 0
        command = ["vllm", "serve", str(checkpoint), "--served-model-name", self.model]
        command += ["--host", HOST, "--port", str(self.port), "--dtype", self.dtype]
        command += ["--max-model-len", str(self.context)]
        command += ["--disable-uvicorn-access-log"]  # a line for each request hides what matters in the log
        if hardware.engine_build() == "cuda":
            command += ["--gpu-memory-utilization", str(engine.gpu_memory_utilization)]
        if engine.tensor_parallel > 1:
            command += ["--tensor-parallel-size", str(engine.tensor_parallel)]
        if engine.enforce_eager:
            command += ["--enforce-eager"]
        self.command = [*command, *options]
        self._log_begin = log.stat().st_size if log.exists() else 0
        self._ending = ExitStack()
        env = engine_env(context) | self._ending.enter_context(scratch("labkit-server-")) | {KEY_VARIABLE: self.key}
        self._began = time.monotonic()
        self._child = Child([sys.executable, "-P", "-m", "labkit.mends", *self.command[1:]], log, env)
        self._ending.callback(self._child.stop)
        self.pid = self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def require_alive(self, seconds: float = 0.0) -> None:
        """Raises ProcessFailed, with its log's error lines, if the server has ended, or does so within `seconds`."""
        deadline = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() >= deadline:
                return
            time.sleep(LOOK_SECONDS)
        raise self._died("died")

    def wait(self, deadline_seconds: float) -> None:
        """Returns once it answers; raises ProcessFailed if it ends before, or is late."""
        while not self._answers():
            self.require_alive()
            if time.monotonic() - self._began > deadline_seconds:
                raise self._died(f"was not ready within {deadline_seconds:.0f} s and was stopped")
            time.sleep(LOOK_SECONDS)
        self.ready_seconds = time.monotonic() - self._began

    def stop(self) -> None:
        """Ends all of the server's processes; returns when none is left."""
        self._ending.close()

    def curl(self, key: str = f"${KEY_VARIABLE}") -> str:
        """A command line that asks this server something; `key` is how the shell is to find the key."""
        body = f'{{"model": "{self.model}", "messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 32}}'
        return (
            f'curl {self.url}/chat/completions -H "Authorization: Bearer {key}" '
            f"-H 'Content-Type: application/json' -d {shlex.quote(body)}"
        )

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:  # the key must not come into a notebook's output
        return f"Server({self.model!r} at {self.url}, log {self.log})"

    def _answers(self) -> bool:
        """Whether the server answers, and to our model's name."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=5)
        try:
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {self.key}"})
            return any(model["id"] == self.model for model in json.load(connection.getresponse())["data"])
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return False
        finally:
            connection.close()

    def _died(self, how: str) -> ProcessFailed:
        lines = error_lines(self.log, self._log_begin)
        known = [fix for line in lines for says, fix in _REMEDIES.items() if re.search(says, line, re.IGNORECASE)]
        remedy = (known or [_READ])[0].format(port=self.port)
        return ProcessFailed(
            f"the server of {self.model} on port {self.port} {how}",
            why="its log tells:\n" + "\n".join(lines) if lines else "its log says nothing of an error",
            fix=f"{remedy}; the whole log is {self.log}",
        )


def serve(
    checkpoint: Path,
    context: Context,
    *,
    log: Path,
    name: str = "",
    port: int = 0,
    options: Sequence[str] = (),
    deadline_seconds: float = 600.0,
) -> Server:
    """Starts a server for a checkpoint and returns once it answers.

    name: what requests call the model (default: the folder's name). port: 0 takes a free one. options: more arguments
    of `vllm serve`. key: from $VLLM_API_KEY, else random.

    Raises UsageError for a port in use and CheckpointError for a folder that is no checkpoint, before anything is
    started; ProcessFailed when the server dies or is not ready within `deadline_seconds`. Nothing is left running then.
    """
    server = Server(checkpoint, context, log, name, port, options)
    try:
        server.wait(deadline_seconds)
    except BaseException:  # Ctrl-C too: a server that nobody holds must not stay
        server.stop()
        raise
    return server


def compiling(engine: Engine) -> Engine:
    """The same engine, compiling its model if this machine has what that takes (`hardware.compile_lacks` says)."""
    return replace(engine, enforce_eager=bool(hardware.compile_lacks()))


def _free_port(port: int) -> int:
    """The port, or any free one for 0."""
    if port and not 1024 <= port <= 65535:
        raise UsageError(f"port is {port}", fix="give one from 1024 to 65535, or 0 for any free one")
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port))
        except OSError as error:
            why = "another program would answer in the server's place"
            fix = "give another port, or 0 for any free one"
            raise UsageError(f"port {port} is in use ({error.strerror})", why, fix) from error
        return int(tried.getsockname()[1])
