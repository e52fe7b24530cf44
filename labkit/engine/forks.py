"""Engines are forked from a process that has imported what they need: on a CPU one takes three seconds, not eleven.

The first engine of a process starts a fork server (forkserver.py), which imports vLLM and lm-eval once; every
further one is a fork of it, with all that in memory. The server ends with this process, with `end_fork_servers`, or by
itself when for a while nothing was asked of it.

A library reads some of its environment when it is imported, glibc and OpenMP read theirs when a process starts. So a
server is there for one environment, but for the variables of LATE and FOREIGN, which a fork gets as they are then.
Where there is a GPU no engine is forked: that has not been tried.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from labkit import hardware, processes

CHILD = Path(__file__).with_name("child.py")
SERVER = Path(__file__).with_name("forkserver.py")
SWITCH = "LABKIT_FORK_ENGINES"  # "0" starts every engine as a new process
MOST_SERVERS = 2  # each takes 0.8 GB of memory, which its forks share; more only while their engines run
# What vLLM and torch read when they use it, and not before; and what nothing of theirs reads.
LATE = {"TMPDIR", "VLLM_API_KEY", "OPENAI_API_KEY", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR"}
FOREIGN = ("LABKIT_", "JPY_", "PYTEST_")

Key = tuple[str, frozenset[tuple[str, str]]]  # the interpreter, and its environment


class Forked:
    """The guard of a fork, with the ways of a `subprocess.Popen`.

    Its process starts once the server has imported everything. If the server ends before that, `anew` starts the same
    as a new process. files: file descriptors that only this takes, closed when no start needs them any more.
    """

    def __init__(
        self,
        server: RunningForkServer,
        answers: socket.socket,
        anew: Callable[[], subprocess.Popen[bytes]],
        files: Sequence[int],
    ) -> None:
        self._server, self._answers, self._anew, self._files = server, answers, anew, list(files)
        self._pid = 0
        self._code: int | None = None
        self._new: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """0 as long as there is no process."""
        self._hear(0.0)
        return self._new.pid if self._new else self._pid

    def poll(self) -> int | None:
        self._hear(0.0)
        return self._new.poll() if self._new else self._code

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.waits:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired("a forked engine", timeout or 0.0)
            self._hear(left)
        return self._new.wait(timeout) if self._new else int(self._code or 0)

    def send_signal(self, sig: int) -> None:
        """A process that has not started does not start any more."""
        self._hear(0.0)
        if self._new:
            self._new.send_signal(sig)
        elif self.waits and self._pid:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self._pid, sig)
        elif self.waits:
            self._end(128 + sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    @property
    def waits(self) -> bool:
        """Whether the server has still to tell of an end."""
        return self._new is None and self._code is None

    def _hear(self, timeout: float | None) -> None:
        """Takes in what the server tells of this fork, if it does within `timeout` seconds."""
        if not self.waits or not _readable(self._answers, timeout):
            return
        word, _, number = self._answers.recv(64).decode().partition(" ")
        if word == "pid":
            self._pid = int(number)
            self._close_files()
            self._hear(0.0)
        elif word == "code":
            self._end(int(number))
        else:  # the server has ended
            self._server.stop()
            if self._pid:  # its guard has ended the forks with it
                self._end(128 + signal.SIGKILL)
            else:
                self._server.useless = True
                self._new = self._anew()
                self._answers.close()
                self._close_files()

    def _end(self, code: int) -> None:
        self._code = code
        self._answers.close()
        self._close_files()

    def _close_files(self) -> None:
        while self._files:
            os.close(self._files.pop())


def _readable(one: socket.socket, timeout: float | None) -> bool:
    """Whether something can be read within `timeout` seconds; `select` would refuse a file descriptor above 1,023."""
    look = select.poll()
    look.register(one, select.POLLIN)
    return bool(look.poll(None if timeout is None else 1000 * timeout))


class RunningForkServer:
    """A running fork server of one environment. useless: whether it ended before it forked what it was asked for."""

    useless = False

    def __init__(self, python: str, env: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="labkit-forks-", ignore_cleanup_errors=True)
        self._control, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            self._child = processes.Child(
                [python, str(SERVER), str(its.fileno()), str(processes.GUARD)],
                Path(self._folder.name) / "log",
                {**env, "TMPDIR": self._folder.name},
                launch=partial(processes.guarded, inherited=[its.fileno()]),
            )
        self._forks: list[Forked] = []
        self._stopping = threading.Lock()

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    @property
    def idle(self) -> bool:
        return not any(fork.waits for fork in self._forks)

    def fork(
        self, command: Sequence[str], output: int, env: Mapping[str, str], cwd: Path | None, owner: int
    ) -> Forked | subprocess.Popen[bytes]:
        """A `Launch` for commands that begin with an interpreter and CHILD."""
        request = {"arguments": list(command[2:]), "env": dict(env), "cwd": str(cwd or Path.cwd())}
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            try:
                socket.send_fds(self._control, [json.dumps(request).encode()], [output, owner, its.fileno()])
            except OSError:  # it has just ended, or the environment is too large for a message
                ours.close()
                return processes.guarded(command, output, env, cwd, owner)
        output, owner = os.dup(output), os.dup(owner)
        fork = Forked(self, ours, partial(processes.guarded, command, output, env, cwd, owner), [output, owner])
        self._forks = [fork, *(other for other in self._forks if other.waits)]
        return fork

    def stop(self) -> None:
        """Ends it, and all of its forks; from any thread, and as often as one likes."""
        with self._stopping:
            self._child.stop()
            self._control.close()
            self._folder.cleanup()


_servers: dict[Key, RunningForkServer] = {}  # the one asked last is last
_lock = threading.Lock()


def launch(
    command: Sequence[str], output: int, env: Mapping[str, str], cwd: Path | None, owner: int
) -> processes.Guard:
    """The `Launch` of engines: by a fork server on a CPU, else as a new process."""
    forkable = os.environ.get(SWITCH) != "0" and shutil.which(command[0]) and hardware.engine_build() == "cpu"
    if not forkable:
        return processes.guarded(command, output, env, cwd, owner)
    early = {name: value for name, value in env.items() if name not in LATE and not name.startswith(FOREIGN)}
    key = command[0], frozenset(early.items())
    with _lock:
        server = _servers.pop(key, None)
        if server is None or not (server.useless or server.alive):
            if server:
                server.stop()
            _make_room()
            server = RunningForkServer(command[0], early)
        _servers[key] = server
        start = processes.guarded if server.useless else server.fork
        return start(command, output, env, cwd, owner)


def _make_room() -> None:
    """Ends the servers that were asked longest ago, but for those whose engines run, if there are too many."""
    for key, server in list(_servers.items()):
        if len(_servers) >= MOST_SERVERS and server.idle:
            _servers.pop(key).stop()


def end_fork_servers(*, idle_only: bool = False) -> None:
    """Ends the fork servers of this process, with all engines that were forked of them; or those without engines."""
    with _lock:
        for key, server in list(_servers.items()):
            if not idle_only or server.idle:
                _servers.pop(key).stop()


def _in_a_fork() -> None:
    """In a process that forks from this one, servers are its parent's: kept, so that none is tidied away."""
    global _servers, _lock
    _inherited.append(_servers)
    _servers, _lock = {}, threading.Lock()


_inherited: list[dict[Key, RunningForkServer]] = []
atexit.register(end_fork_servers)
os.register_at_fork(after_in_child=_in_a_fork)
