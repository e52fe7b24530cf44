"""Runs a command and leaves nothing of it behind. A script of its own: `python -I -S guard.py COMMAND ...`.

Its stdin is a pipe that its owner keeps open. When the command ends, when the guard gets SIGTERM or SIGINT, or when the
pipe closes (its owner died, by SIGKILL too), every descendant of the guard is killed, also one that left the process
group, as Jupyter kernels do: the guard is their subreaper, so orphans become its children and can't get away.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
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
    command = sys.argv[1:]
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    awaited = (*ENDING, signal.SIGCHLD)
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # they wait for `sigwait`
    no_input = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    try:
        child = os.posix_spawnp(command[0], command, os.environ, file_actions=no_input, setsigmask=(), setsigdef=ENDING)
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr)
        return 127

    def end_with_the_owner() -> None:
        os.read(0, 1)  # returns when the pipe is closed
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_the_owner, daemon=True).start()
    while True:
        if signal.sigwait(awaited) in ENDING:
            end_all(GRACE_SECONDS)
            return 128 + signal.SIGTERM
        ended, _ = reap()
        if child in ended:
            end_all(grace=0.5)
            code = ended[child]
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
