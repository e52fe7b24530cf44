"""The runner's side of `labkit.quiet`: it sees that a lab asks, stops the processes of another, and lets them go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from labkit.quiet import ASKED, GRANTED

STANDING = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP, psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
LONGEST_SECONDS = 10.0  # one that waits for a disk stops after that


def asks(folder: Path) -> bool:
    return (folder / ASKED).exists()


def grant(folder: Path) -> None:
    """Answers the lab of a folder, if it (still) asks."""
    with suppress(FileNotFoundError):
        word = (folder / ASKED).read_text(encoding="ascii")
        granted = folder / GRANTED
        if not granted.exists() or granted.read_text(encoding="ascii") != word:
            granted.write_text(word, encoding="ascii")


def stand_still(guard: int) -> None:
    """Returns when every process below a guard is stopped, those too that were started meanwhile.

    The guard itself goes on: when the runner dies it ends them all, stopped or not.
    """
    began = time.monotonic()
    while moving := [process for process in _below(guard) if _moves(process)]:
        for process in moving:
            with suppress(psutil.Error):  # it ended while we looked
                process.suspend()
        if time.monotonic() - began > LONGEST_SECONDS:
            return
        time.sleep(0.005)


def go_on(guard: int) -> None:
    """Lets every process below a guard go on."""
    for process in _below(guard):
        with suppress(psutil.Error):
            process.resume()


def _below(guard: int) -> Iterator[psutil.Process]:
    try:
        yield from psutil.Process(guard).children(recursive=True)
    except psutil.Error:  # it has ended
        return


def _moves(process: psutil.Process) -> bool:
    try:
        return process.status() not in STANDING
    except psutil.Error:
        return False
