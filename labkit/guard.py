"""Runs a command and leaves nothing of it behind. A script of its own: `python -I -S guard.py PIPE_FD -- COMMAND ...`.
With `--adopt PID` in place of the command it guards a child that its process had before it became this script; the
signals of ENDING are blocked then.

Whoever starts it keeps the other end of the pipe open. When the command ends, when the guard gets SIGTERM or SIGINT, or
when the pipe closes (its owner died, by SIGKILL too), every descendant of the guard is killed, also one that left the
process group, as Jupyter kernels do: the guard is their subreaper, so orphans become its children and can't get away.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = 3.0
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def descendants() -> list[int]:
    """All live processes under this one, from /proc."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, parent = file.read().rsplit(b")", 1)[1].split()[:2]
            except OSError:
                continue  # it ended while we looked
            if state != b"Z":
                children.setdefault(int(parent), []).append(int(name))
    found, todo = [], [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself
            os.kill(pid, number)


def reap() -> tuple[dict[int, int], bool]:
    """Collects the children that have ended: pid to exit code (negative for a signal); and whether any are left."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended, False
        if pid == 0:
            return ended, True
        ended[pid] = os.waitstatus_to_exitcode(status)


def end_all(grace: float) -> None:
    """SIGTERM to every descendant, SIGKILL to those still there after the grace, until none is left.

    Orphans become the guard's children, so with no child left there is no descendant either. A process whose first
    thread has ended looks like a zombie while its other threads still give its memory back: only then is it reaped.
    """
    signal_all(descendants(), signal.SIGTERM)
    deadline = time.monotonic() + grace
    while reap()[1]:
        if time.monotonic() > deadline:
            signal_all(descendants(), signal.SIGKILL)
        time.sleep(0.02)


def main() -> int:
    pipe, command = int(sys.argv[1]), sys.argv[3:]
    adopted = int(command[0]) if sys.argv[2] == "--adopt" else 0
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (*ENDING, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)  # blocked by whoever adopts, until this place
    os.set_inheritable(pipe, False)
    try:
        child = adopted or os.posix_spawnp(
            command[0], command, os.environ, setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
        )
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr)
        return 127
    ready: list[int] = []
    woken = b""
    while True:
        ended, _ = reap()
        if child in ended:
            end_all(grace=0.5)
            code = ended[child]
            return code if code >= 0 else 128 - code
        if pipe in ready or any(byte in ENDING for byte in woken):
            end_all(GRACE_SECONDS)
            return 128 + signal.SIGTERM
        ready, _, _ = select.select([pipe, wake_read], [], [])
        woken = os.read(wake_read, 64) if wake_read in ready else b""


if __name__ == "__main__":
    sys.exit(main())
