"""Supervised children: engines, labs and servers run here, and nothing of them outlives what they were started for.

Each child runs under `guard.py`, which kills all its descendants when it ends, when it is told to, or when this process
dies. Output goes to a log file that errors name. Isolation is the point: when an engine's process ends its memory is
back, which no `del model` can promise.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from labkit.errors import ProcessFailed

GUARD = Path(__file__).with_name("guard.py")
LOOK_SHARE = 0.02  # of a core, at most, for looking at a child's memory: a look at a process tree takes milliseconds


def engine_python() -> str:
    """The interpreter that runs engines: `LABKIT_ENGINE_PYTHON`, else this one."""
    return os.environ.get("LABKIT_ENGINE_PYTHON") or sys.executable


@dataclass(frozen=True)
class Finished:
    """How a child ended: `peak_bytes` is the largest sum of resident memory seen over its whole process tree."""

    returncode: int
    wall_seconds: float
    peak_bytes: int
    log: Path


class Guard(Protocol):
    """The process that guards a child, with the ways of a `subprocess.Popen`; pid is 0 until it starts.

    lends: the pid of a fork server below it that runs the child, 0 for none; see tree_bytes.
    """

    @property
    def pid(self) -> int: ...
    @property
    def lends(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


class Launch(Protocol):
    """Starts a command under a guard. output: a file descriptor for all that it prints. env: all of its environment.
    owner: the end of a pipe that closes when this process dies.
    """

    def __call__(
        self, command: Sequence[str], output: int, env: Mapping[str, str], cwd: Path | None, owner: int
    ) -> Guard: ...


class Guarded(subprocess.Popen[bytes]):
    """A guard that was started as a new process."""

    lends = 0


def guarded(
    command: Sequence[str],
    output: int,
    env: Mapping[str, str],
    cwd: Path | None,
    owner: int,
    inherited: Sequence[int] = (),
) -> Guarded:
    """The usual `Launch`: a new process. inherited: file descriptors that the command keeps."""
    return Guarded(
        [sys.executable, "-I", "-S", str(GUARD), str(owner), "--", *command],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=env,
        cwd=cwd,
        pass_fds=[owner, *inherited],
        start_new_session=True,  # Ctrl-C in a terminal reaches us first; we end the child in order
    )


class Child:
    """A running supervised child. Made by `start`; ended by `stop`, its own end, or the death of this process."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        launch: Launch = guarded,
    ):
        self.command, self.log = list(command), log
        log.parent.mkdir(parents=True, exist_ok=True)
        read_end, self._write_end = os.pipe()
        with open(log, "ab") as output:
            self._process = launch(self.command, output.fileno(), {**os.environ, **(env or {})}, cwd, read_end)
        os.close(read_end)
        self._began = self._next_look = time.monotonic()
        self.peak_bytes = self._most_resident = 0

    @property
    def pid(self) -> int:
        """The guard's process id; the command is its child. Waits for one that is still to be forked; 0 if none was."""
        while not self._process.pid and self._process.poll() is None:
            time.sleep(0.01)
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code (128 + N for signal N), or None while it runs. Also measures memory, as LOOK_SHARE allows."""
        pid = self._process.pid
        if pid and time.monotonic() >= self._next_look:
            began = time.thread_time()  # not the clock: one look that waits for a busy core would blind us for long
            resident, held = tree_bytes(pid, self._process.lends, self._most_resident)
            self._most_resident, self.peak_bytes = max(self._most_resident, resident), max(self.peak_bytes, held)
            self._next_look = time.monotonic() + (time.thread_time() - began) / LOOK_SHARE
        return self._process.poll()

    def finished(self) -> Finished:
        return Finished(self._process.wait(), time.monotonic() - self._began, self.peak_bytes, self.log)

    def ask_to_stop(self) -> None:
        """Begins to end the child, without waiting for it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Ends the child and all that it started; returns when none is left."""
        self.ask_to_stop()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._write_end >= 0:
            os.close(self._write_end)
            self._write_end = -1


def tree_bytes(pid: int, lends: int = 0, most_resident: int = 0) -> tuple[int, int]:
    """Bytes of a process and all below it: the sum of what is resident in each, and what they hold in all.

    What they hold is Linux's proportional set size: of a page that several processes share, as forks and those with the
    same libraries do, each has its part, so together they have it once (less the part of processes that are not below).
    It takes the kernel long to tell, so it is asked only where more is resident than `most_resident`, and is 0 else.
    lends: a fork server that runs something below it; it counts while it has other children too, its forks.
    """
    resident = held = 0
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
        asked = lends and sum(process.ppid() == lends for process in tree) > 1
    except psutil.Error:
        return 0, 0
    tree = [process for process in tree if asked or process.pid != lends]
    for process in tree:
        with suppress(psutil.Error):  # it ended while we looked
            resident += process.memory_info().rss
    for process in tree if resident > most_resident else ():
        with suppress(psutil.Error):
            held += process.memory_full_info().pss
    return resident, held


@contextmanager
def start(
    command: Sequence[str],
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    launch: Launch = guarded,
) -> Iterator[Child]:
    """A child for the length of a `with` block."""
    child = Child(command, log, env, cwd, launch)
    try:
        yield child
    finally:
        child.stop()


def run(
    command: Sequence[str],
    log: Path,
    *,
    deadline_seconds: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_tick: Callable[[], None] | None = None,
    launch: Launch = guarded,
) -> Finished:
    """Runs a command to its end; its exit code is the caller's to judge.

    Raises ProcessFailed when it outlasts `deadline_seconds` (it is killed then), with the log's last lines. `on_tick`,
    if given, is called about five times a second (to draw progress).
    """
    with start(command, log, env, cwd, launch) as child:
        deadline = time.monotonic() + deadline_seconds
        while child.poll() is None:
            if time.monotonic() > deadline:
                raise ProcessFailed(
                    f"{command_line(command)} did not end within {deadline_seconds:.0f} s and was stopped",
                    why=f"the end of its log:\n{log_tail(log)}",
                    fix=f"look at {log}; if it was still working, give it more time",
                )
            if on_tick:
                on_tick()
            time.sleep(0.2 if child.peak_bytes > 2**28 else 0.05)
        return child.finished()


def command_line(command: Sequence[str]) -> str:
    """A command for a message, shortened to what tells."""
    text = " ".join(command)
    return text if len(text) < 200 else text[:197] + "..."


def log_tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log; the end of the file only is read."""
    if not log.exists():
        return "(no log)"
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 16_384))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
