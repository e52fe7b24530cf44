"""A process that has imported what engines need, and forks: `python forkserver.py SOCKET_FD GUARD`.

A new process takes eight seconds of a core for these imports, and a fork has them. `labkit.engine.forks` starts one,
and sends it requests: each has the arguments that child.py would have been started with, and is answered by a fork that
goes on there. As for child.py, the interpreter may have no labkit.
"""

import contextlib
import ctypes
import gc
import importlib
import importlib.util
import json
import os
import select
import signal
import socket
import sys
import tempfile
import traceback
from typing import Any

CHILD = os.path.join(os.path.dirname(os.path.abspath(__file__)), "child.py")
_spec = importlib.util.spec_from_file_location("engine_child", CHILD)
assert _spec is not None
assert _spec.loader is not None
child = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(child)  # it mends things, here and in processes that vLLM spawns

# What a fork server imports: the entrances of vLLM and of lm-eval, and what vLLM imports late, when an engine starts.
PRELOADED = (
    "vllm.entrypoints.llm",
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.openai.api_server",
    "vllm.benchmarks.serve",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "lm_eval.tasks",
    "lm_eval.models.vllm_causallms",
    "lm_eval.models.huggingface",
    "datasets",
)
IDLE_SECONDS = 600.0  # that long a fork server waits for a request before it gives its memory back
PR_SET_CHILD_SUBREAPER = 36
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # what ends a guard


class ForkServer:
    """The server's side: a socket on which requests come, and the forks that run, each with whom to tell its end."""

    def __init__(self, control: socket.socket, guard: str) -> None:
        self._control, self._guard = control, guard
        self._running: dict[int, tuple[int, socket.socket]] = {}  # a file descriptor of the process: its pid, its asker

    def serve(self) -> list[str] | None:
        """Answers requests until their sender is gone, or for IDLE_SECONDS there were none: then it returns None.

        Returns in the forks, too: with the arguments that were asked for.
        """
        while True:
            heard: list[Any] = [self._control, *self._running]
            ready, _, _ = select.select(heard, [], [], None if self._running else IDLE_SECONDS)
            for ended in self._running.keys() & set(ready):
                self._tell_end(ended)
            if not ready:
                return None
            if self._control in ready:
                message, files, _, _ = socket.recv_fds(self._control, 2**20, 3, socket.MSG_CMSG_CLOEXEC)
                if not message:
                    return None
                arguments = self._answer(json.loads(message), *files)
                if arguments is not None:
                    return arguments

    def _tell_end(self, process: int) -> None:
        pid, asker = self._running.pop(process)
        os.close(process)
        _, status = os.waitpid(pid, 0)
        _tell(asker, "code", os.waitstatus_to_exitcode(status))
        asker.close()

    def _answer(self, request: dict[str, Any], output: int, owner: int, answer: int) -> list[str] | None:
        """Forks; returns None here, the request's arguments in the fork. output: where the fork prints. owner: the pipe
        whose closing tells its guard that whoever asked is gone. answer: the socket of whoever asked.
        """
        asker = socket.socket(fileno=answer)
        if select.select([asker], [], [], 0)[0]:  # its other end was closed, as it says nothing itself: given up
            asker.close()
            os.close(output)
            os.close(owner)
            return None
        sys.stdout.flush()
        guard = os.fork()
        if not guard:
            try:
                return self._become(request, output, owner, asker)
            except BaseException:  # noqa: BLE001  in the fork: the server must not go on twice
                traceback.print_exc()
                os._exit(127)
        os.close(output)
        os.close(owner)
        self._running[os.pidfd_open(guard)] = (guard, asker)
        _tell(asker, "pid", guard)
        return None

    def _become(self, request: dict[str, Any], output: int, owner: int, asker: socket.socket) -> list[str]:
        """In the fork: forks once more. The parent becomes the guard of its child, which alone returns.

        The guard is exec'd, so that of two processes only the engine's holds what was imported.
        """
        os.setsid()
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in enumerate((nothing, output, output)):
            os.dup2(source, target)
        os.close(nothing)
        os.close(output)
        for process, (_, other) in self._running.items():
            os.close(process)
            other.close()
        self._control.close()
        asker.close()
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        tempfile.tempdir = None  # found anew, from the environment
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # a guard that does not listen yet must not end alone
        engine = os.fork()
        if engine:
            os.set_inheritable(owner, True)
            os.execv(sys.executable, [sys.executable, "-I", "-S", self._guard, str(owner), "--adopt", str(engine)])
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(owner)
        arguments: list[str] = request["arguments"]
        return arguments


def _tell(asker: socket.socket, word: str, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        asker.send(f"{word} {number}".encode())


def preload() -> None:
    """Imports what engines need. What is missing or broken is left for the fork that needs it to tell."""
    for name in PRELOADED:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # forks share these pages as long as nobody writes to them, and looking for garbage does


def fork_engine_cores() -> None:
    """A server forks its engine core, as vLLM does it on a GPU; the CPU platform asks for a new process instead, which
    imports everything again. One that is split over several workers still gets new ones: it forks beside its threads.
    """
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config

    def check_and_fork(_: type, config: Any) -> None:
        check(config)
        if config.parallel_config.world_size == 1:
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    CpuPlatform.check_and_update_config = classmethod(check_and_fork)  # type: ignore[assignment, method-assign]


def main(control_fd: int, guard: str) -> None:
    """The server, and in each fork what was asked of it."""
    control = socket.socket(fileno=control_fd)
    preload()
    arguments = ForkServer(control, guard).serve()
    if arguments is None:
        os._exit(0)  # what was imported has nothing to tidy up
    sys.argv = [CHILD, *arguments]
    fork_engine_cores()
    child.main(arguments)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
