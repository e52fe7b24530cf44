"""Before a cell that takes a while: a line that says how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labkit import pace
from labkit.lab.shell import current_shell
from labkit.workspace import Workspace

_saying: list[Callable[[Any], None]] = []  # at most one, that of the lab that was opened last


def say_before_long_cells(workspace: Workspace, lab: str, profile: str) -> None:
    """From now on each cell of which it is known that it takes long says so in its first line."""
    shell = current_shell()
    known = pace.expected(workspace, lab, profile)
    if shell is None:
        return
    while _saying:
        shell.events.unregister("pre_run_cell", _saying.pop())
    if known is None:
        return

    where = f"as measured on {known.machine}" if known.machine else "as when it last ran in this workspace"

    def say(info: Any) -> None:
        if seconds := known.of(info.raw_cell or ""):
            print(f"Takes about {pace.rounded_up(seconds)} on the {profile} profile, {where}.")

    shell.events.register("pre_run_cell", say)
    _saying.append(say)
