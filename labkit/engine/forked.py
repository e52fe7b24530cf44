"""Fork servers as whoever asks them sees them: what answers requests for forks, and the forks."""

from __future__ import annotations

import json
import os
import select
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
from typing import Any

from labkit import processes

SERVER = Path(__file__).with_name("forkserver.py")


class Forked:
    """The guard of a fork, with the ways of a `subprocess.Popen`.

    Its process starts once the server has imported everything. If the server ends before that, `anew` starts the same
    as a new process. files: file descriptors that only this takes, closed when no start needs them any more. lends:
    whether the process that it guards is a fork server itself.
    """

    def __init__(
        self,
        server: ForkServer,
        answers: socket.socket,
        anew: Callable[[], processes.Guard],
        files: Sequence[int],
        *,
        lends: bool = False,
    ) -> None:
        self._server, self._answers, self._anew, self._files, self._lends = server, answers, anew, list(files), lends
        self._pid = self._child = 0
        self._code: int | None = None
        self._new: processes.Guard | None = None

    @property
    def pid(self) -> int:
        """0 as long as there is no process."""
        self._hear(0.0)
        return self._new.pid if self._new else self._pid

    @property
    def lends(self) -> int:
        """The process below it that is a fork server itself, 0 if there is none."""
        return self._child if self._lends else 0

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
        word, *numbers = self._answers.recv(64).decode().split(" ")
        if word == "pid":
            self._pid, self._child = map(int, numbers)
            self._close_files()
            self._hear(0.0)
        elif word == "code":
            self._end(int(numbers[0]))
        elif word == "no":  # it could not fork
            self._start_anew()
        else:  # the server has ended
            self._server.stop()
            if self._pid:  # its guard has ended the forks with it
                self._end(128 + signal.SIGKILL)
            else:
                self._server.useless = True
                self._start_anew()

    def _start_anew(self) -> None:
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


class ForkServer:
    """A fork server at the other end of a socket. useless: whether it ended before it forked what it was asked for."""

    useless = False

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._forks: list[Forked] = []

    @property
    def alive(self) -> bool:
        """Whether the other end is open: it sends nothing, so there is nothing to be read until it closes."""
        return self._control.fileno() >= 0 and not _readable(self._control, 0.0)

    @property
    def idle(self) -> bool:
        return not any(fork.waits for fork in self._forks)

    @property
    def guards(self) -> list[int]:
        """The guards of its forks that run for this process."""
        return [fork.pid for fork in self._forks if fork.pid and fork.waits]

    def fork(
        self, command: Sequence[str], output: int, env: Mapping[str, str], cwd: Path | None, owner: int
    ) -> processes.Guard:
        """A `Launch` for commands that begin with an interpreter and child.py."""
        return self.ask({"arguments": list(command[2:])}, command, output, env, cwd, owner)

    def ask(
        self,
        request: Mapping[str, Any],
        command: Sequence[str],
        output: int,
        env: Mapping[str, str],
        cwd: Path | None,
        owner: int,
    ) -> processes.Guard:
        """What the server makes of a request; `command` is started where it can't."""
        message = json.dumps({**request, "env": dict(env), "cwd": str(cwd or Path.cwd())}).encode()
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            try:
                socket.send_fds(self._control, [message], [output, owner, its.fileno()])
            except OSError:  # it has just ended, or the environment is too large for a message
                ours.close()
                return processes.guarded(command, output, env, cwd, owner)
        output, owner = os.dup(output), os.dup(owner)
        anew = partial(processes.guarded, command, output, env, cwd, owner)
        fork = Forked(self, ours, anew, [output, owner], lends="command" in request)
        self._forks = [fork, *(other for other in self._forks if other.waits)]
        return fork

    def stop(self) -> None:
        self._control.close()


class OwnForkServer(ForkServer):
    """A fork server that is a child of this process: of one environment, and gone with this process."""

    def __init__(self, python: str, env: Mapping[str, str]) -> None:
        control, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(control)
        self._folder = tempfile.TemporaryDirectory(prefix="labkit-forks-", ignore_cleanup_errors=True)
        with its:
            self._child = processes.Child(
                [python, str(SERVER), str(its.fileno()), str(processes.GUARD)],
                Path(self._folder.name) / "log",
                {**env, "TMPDIR": self._folder.name},
                launch=partial(processes.guarded, inherited=[its.fileno()]),
            )
        self._stopping = threading.Lock()

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    @property
    def ready(self) -> bool:
        """Whether it has imported everything, and forks at once: it has said so."""
        return self.alive and _readable(self._control, 0.0)

    def stop(self) -> None:
        """Ends it, and all of its forks; from any thread, and as often as one likes."""
        with self._stopping:
            self._child.stop()
            self._control.close()
            self._folder.cleanup()


def _readable(one: socket.socket, timeout: float | None) -> bool:
    """Whether something can be read within `timeout` seconds; `select` would refuse a file descriptor above 1,023."""
    look = select.poll()
    look.register(one, select.POLLIN)
    return bool(look.poll(None if timeout is None else 1000 * timeout))
