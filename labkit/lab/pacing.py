"""Before a cell that takes a while: a line that says how long, here."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

from labkit import hardware, pace
from labkit.lab.shell import current_shell
from labkit.workspace import Workspace

_registered: list[tuple[str, Callable[[Any], None]]] = []  # of the lab that was opened last


def say_before_long_cells(workspace: Workspace, lab: str, profile: str) -> None:
    """From now on each cell that is expected to take long says so in its first line.

    What the lab's cells have taken so far corrects what is said of those that follow.
    """
    shell = current_shell()
    if shell is None:
        return
    while _registered:
        shell.events.unregister(*_registered.pop())
    said, took, began = 0.0, 0.0, 0.0

    @cache  # not before a cell runs: the probe takes a moment
    def known() -> pace.Pace | None:
        return pace.expected(workspace, lab, profile, hardware.this_machine().level)

    def before(info: Any) -> None:
        nonlocal began
        found = known()
        seconds = found.of(info.raw_cell or "") if found else None
        if found and seconds and (seconds := seconds * (took / said if said else 1)) >= pace.NOTICEABLE_SECONDS:
            so_far = " and the cells so far" if said else ""
            print(f"Takes about {pace.rounded_up(seconds)} here (estimated from {found.source}{so_far}).", flush=True)
        began = time.monotonic()

    def after(result: Any) -> None:
        nonlocal said, took
        found, seconds = known(), time.monotonic() - began
        expected = found.of(result.info.raw_cell or "") if found else None
        if expected and result.success and seconds >= pace.KEPT_SECONDS:  # a cell may find its work done before
            said, took = said + expected, took + seconds

    _registered[:] = [("pre_run_cell", before), ("post_run_cell", after)]
    for event in _registered:
        shell.events.register(*event)
