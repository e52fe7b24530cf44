"""A process that has imported what engines need, and forks: `python forkserver.py SOCKET_FD GUARD`.

A new process takes eight seconds of a core for these imports, and a fork has them. `labkit.engine.forked` starts one,
and sends it requests; each is answered by a fork. One with "arguments", those that child.py would have been started
with, goes on there. One with a "command" (`labkit.engine.lending`) becomes a fork server itself, for what the command
starts: it runs the command, and takes requests on the socket that is named, until the command ends. As for child.py,
the interpreter may have no labkit.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any

HERE = os.path.dirname(os.path.abspath(__file__))
CHILD = os.path.join(HERE, "child.py")


def _load(path: str) -> Any:
    """A module by its path."""
    spec = importlib.util.spec_from_file_location("labkit_" + os.path.basename(path).removesuffix(".py"), path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


child = _load(CHILD)  # it mends things, here and in processes that vLLM spawns
imported = _load(os.path.join(HERE, "imported.py"))

IDLE_SECONDS = 600.0  # that long a fork server waits for a request before it gives its memory back
PR_SET_CHILD_SUBREAPER = 36
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # what ends a guard


class ForkServer:
    """The server's side: sockets on which requests come, and the forks that run, each with whom to tell its end.

    code: what the command ended with, for which this serves.
    """

    code = 0

    def __init__(self, guard: str, controls: Sequence[socket.socket] = ()) -> None:
        self._guard, self._controls = guard, set(controls)
        self._listener: socket.socket | None = None
        self._command: subprocess.Popen[bytes] | None = None
        self._commands_end: list[int] = []  # its file descriptor
        self._running: dict[int, tuple[int, socket.socket]] = {}  # a file descriptor of the process: its pid, its asker

    @classmethod
    def of_command(cls, guard: str, command: Sequence[str], path: str) -> ForkServer:
        """One that has started a command, and listens at `path`."""
        server = cls(guard)
        server._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        server._listener.bind(path)
        server._listener.listen()
        server._command = subprocess.Popen(command)
        server._commands_end = [os.pidfd_open(server._command.pid)]
        return server

    def serve(self) -> dict[str, Any] | None:
        """Answers requests. It returns None when there will be no more: their senders are gone, or the command has
        ended, or for IDLE_SECONDS there was none. In the forks it returns their request.
        """
        while self._controls or self._command:
            listening = [self._listener] if self._listener else []
            heard: list[Any] = [*self._controls, *listening, *self._commands_end, *self._running]
            ready, _, _ = select.select(heard, [], [], None if self._running or self._command else IDLE_SECONDS)
            for ended in self._running.keys() & set(ready):
                self._tell_end(ended)
            if not ready:
                return None
            if self._command and self._commands_end[0] in ready:
                self.code = self._command.wait()
                return None
            if self._listener and self._listener in ready:
                self._controls.add(self._listener.accept()[0])
            for control in self._controls & set(ready):
                request = self._hear(control)
                if request is not None:
                    return request
        return None

    def _hear(self, control: socket.socket) -> dict[str, Any] | None:
        """Takes a request, or that its sender is gone; returns it in the fork that was asked for."""
        try:
            message, files, _, _ = socket.recv_fds(control, 2**20, 3, socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:  # gone without having read that this is ready
            message, files = b"", []
        if message:
            return self._answer(json.loads(message), *files)
        self._controls.remove(control)
        control.close()
        return None

    def _tell_end(self, process: int) -> None:
        pid, asker = self._running.pop(process)
        os.close(process)
        _, status = os.waitpid(pid, 0)
        _tell(asker, "code", os.waitstatus_to_exitcode(status))
        asker.close()

    def _answer(self, request: dict[str, Any], output: int, owner: int, answer: int) -> dict[str, Any] | None:
        """Forks; returns None here, the request in the fork. output: where the fork prints. owner: the pipe whose
        closing tells its guard that whoever asked is gone. answer: the socket of whoever asked.
        """
        asker = socket.socket(fileno=answer)
        guard = None
        given_up, _, _ = select.select([asker], [], [], 0)  # its other end was closed, as it says nothing itself
        if not given_up:
            sys.stdout.flush()
            try:
                guard = os.fork()
            except OSError:  # there is no memory, or there are too many processes; a new process may come through
                _tell(asker, "no")
        if guard == 0:
            try:
                self._become(request, output, owner, asker)
                return request
            except BaseException:  # noqa: BLE001  in the fork: the server must not go on twice
                traceback.print_exc()
                os._exit(127)
        os.close(output)
        os.close(owner)
        if guard is None:
            asker.close()
        else:
            self._running[os.pidfd_open(guard)] = (guard, asker)
        return None

    def _become(self, request: dict[str, Any], output: int, owner: int, asker: socket.socket) -> None:
        """In the fork: forks once more. The parent becomes the guard of its child, which alone returns.

        The guard is exec'd, so that of the two only the child holds what was imported.
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
        for end in self._commands_end:
            os.close(end)
        for theirs in (*self._controls, *([self._listener] if self._listener else [])):
            theirs.close()
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        tempfile.tempdir = None  # found anew, from the environment
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # a guard that does not listen yet must not end alone
        guarded = os.fork()
        if guarded:
            _tell(asker, "pid", os.getpid(), guarded)
            os.set_inheritable(owner, True)
            try:
                os.execv(sys.executable, [sys.executable, "-I", "-S", self._guard, str(owner), "--adopt", str(guarded)])
            except OSError:
                os.kill(guarded, signal.SIGKILL)  # nobody would guard it
                raise
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(owner)
        asker.close()


def _tell(asker: socket.socket, word: str, *numbers: int) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        asker.send(" ".join([word, *map(str, numbers)]).encode())


def main(control_fd: int, guard: str) -> None:
    """The server, and in each fork what was asked of it."""
    control = socket.socket(fileno=control_fd)
    imported.preload()
    with contextlib.suppress(OSError):  # nobody waits for it any more
        control.send(b"ready")
    server = ForkServer(guard, [control])
    while (request := server.serve()) and "command" in request:
        try:
            server = ForkServer.of_command(guard, request["command"], request["socket"])
        except OSError:
            traceback.print_exc()
            os._exit(127)
    if not request:
        # What was imported has nothing to tidy up.
        os._exit(server.code if server.code >= 0 else 128 - server.code)
    sys.argv = [CHILD, *request["arguments"]]
    imported.settle_in()
    child.main(request["arguments"])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
