"""Supervised child processes: labs, servers and pipelines run here, and nothing of them outlives what started them.

Each child runs under `guard.py`, which kills all its descendants when it ends, when it is told to, or when this process
dies. Output goes to a log file that errors name.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from labkit.errors import ProcessFailed

GUARD = Path(__file__).with_name("guard.py")
LOOK_SHARE = 0.02  # of a core, at most, for looking at a child's memory: a look at a process tree takes milliseconds


@dataclass(frozen=True)
class Finished:
    """How a child ended: `peak_bytes` is the most memory that its whole process tree held, shared pages once."""

    returncode: int
    wall_seconds: float
    peak_bytes: int


class Child:
    """A running supervised child, ended by `stop`, its `with` block, its own end, or the death of this process.

    pid: of the guard; the command is its child.
    """

    def __init__(
        self, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD), *command],
                stdin=subprocess.PIPE,  # closed when this process dies
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,  # Ctrl-C in a terminal reaches us first; we end the child in order
            )
        self.pid = self._process.pid
        self._began = self._next_look = time.monotonic()
        self.peak_bytes = self._most_resident = 0

    def poll(self) -> int | None:
        """The exit code (128 + N for signal N), or None while it runs. Also measures memory, as LOOK_SHARE allows."""
        if time.monotonic() >= self._next_look:
            began = time.thread_time()  # not the clock: one look that waits for a busy core would blind us for long
            resident, held = tree_bytes(self.pid, self._most_resident)
            self._most_resident, self.peak_bytes = max(self._most_resident, resident), max(self.peak_bytes, held)
            self._next_look = time.monotonic() + (time.thread_time() - began) / LOOK_SHARE
        return self._process.poll()

    def finished(self) -> Finished:
        return Finished(self._process.wait(), time.monotonic() - self._began, self.peak_bytes)

    def stop(self) -> None:
        """Ends the child and all that it started; returns when none is left."""
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def tree_bytes(pid: int, most_resident: int = 0) -> tuple[int, int]:
    """Bytes of a process and all below it: the sum of what is resident in each, and what they hold in all.

    What they hold is Linux's proportional set size: a page that several processes share counts once. It takes the
    kernel long to tell, so it is asked only where more is resident than `most_resident`, and is 0 else.
    """
    resident = held = 0
    try:
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0, 0
    for process in tree:
        with suppress(psutil.Error):  # it ended while we looked
            resident += process.memory_info().rss
    for process in tree if resident > most_resident else ():
        with suppress(psutil.Error):
            held += process.memory_full_info().pss
    return resident, held


def run(
    command: Sequence[str],
    log: Path,
    *,
    deadline_seconds: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_tick: Callable[[], None] = lambda: None,
) -> Finished:
    """Runs a command to its end; its exit code is the caller's to judge.

    Raises ProcessFailed when it outlasts `deadline_seconds`, with the log's last lines. `on_tick` is called about five
    times a second (to draw progress).
    """
    with Child(command, log, env, cwd) as child:
        deadline = time.monotonic() + deadline_seconds
        while child.poll() is None:
            if time.monotonic() > deadline:
                what = f"{' '.join(command)[:200]} did not end within {deadline_seconds:.0f} s and was stopped"
                fix = f"look at {log}; if it was still working, give it more time"
                raise ProcessFailed(what, f"the end of its log:\n{log_tail(log)}", fix)
            on_tick()
            time.sleep(0.2 if child.peak_bytes > 2**28 else 0.05)
        return child.finished()


def torchrun(script: Path, *arguments: str, processes: int, log: Path, deadline_seconds: float = 3600.0) -> Finished:
    """Runs a script by several processes of this machine under PyTorch's `torchrun`; see `run`.

    By itself torchrun listens on all addresses of the machine. Here its processes meet in a file, whose address for
    `init_process_group` is in `MEET`, and talk on the loopback only. OpenMP has one thread in each, so that the
    arithmetic is the same however many there are.
    """
    with tempfile.TemporaryDirectory(prefix="labkit-torchrun-") as folder:
        environment = {
            "MEET": f"file://{folder}/processes",
            "PET_RDZV_BACKEND": "c10d",
            "PET_RDZV_CONF": "store_type=file",
            "PET_RDZV_ENDPOINT": f"{folder}/torchrun",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "NCCL_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        program = str(Path(sys.executable).with_name("torchrun"))  # a kernel's PATH need not have it
        command = [program, "--nproc-per-node", str(processes), str(script), *arguments]
        others = set(Path("/dev/shm").glob("torch_*"))
        try:
            return run(command, log, deadline_seconds=deadline_seconds, env=environment)
        finally:
            for left in set(Path("/dev/shm").glob("torch_*_*")) - others:  # now and then shared tensors stay behind
                if not Path(f"/proc/{left.name.split('_')[1]}").exists():
                    left.unlink(missing_ok=True)


@contextmanager
def children_to_log(path: Path, *streams: int) -> Iterator[None]:
    """Appends to `path` what child processes that start in a block write to their streams: 1 is stdout, 2 is stderr.

    Python's own streams are not touched where they are none of these, as in a notebook's kernel.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = [(stream, os.dup(stream)) for stream in streams]
    try:
        with open(path, "ab") as file:
            for stream in streams:
                os.dup2(file.fileno(), stream)
            yield
    finally:
        for stream, kept in before:
            os.dup2(kept, stream)
            os.close(kept)


def log_tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log; the end of the file only is read."""
    if not log.exists():
        return "(no log)"
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 16_384))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
