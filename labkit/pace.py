"""How long labs and their cells take on this machine, so that a lab and `labkit doctor` can say it beforehand.

The last run of a lab in this workspace comes first. Else it is estimated from what ships with labkit: runs on some
levels of CPU, which `make figures` writes, scaled by a short probe that those runs took too. A cell that was changed
has another key, and no time.
"""

from __future__ import annotations

import hashlib
import json
import timeit
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from labkit.hardware import LEVELS, this_machine
from labkit.store import Workspace

SHIPPED = Path(__file__).with_name("paces.json")
NOTICEABLE_SECONDS = 5.0
KEPT_SECONDS = 2.0  # a slower machine may wait noticeably where this one did not
CPUS = ("other", *(name for name, _, _ in LEVELS))  # the levels without a GPU, from old to new
INJECTED = "injected-parameters"  # papermill's tag
_registered: list[Callable[[Any], None]] = []  # for the lab that was opened last


@dataclass(frozen=True)
class Pace:
    """Seconds of a whole lab, and of its slower cells by their keys. source: what they are taken from."""

    seconds: float
    cells: Mapping[str, float]
    source: str


def cell_key(cell: str) -> str:
    return hashlib.sha256(cell.strip().encode()).hexdigest()[:16]


def expected(workspace: Workspace, lab: str, profile: str, level: str) -> Pace | None:
    """What is known of a lab on this profile: from its last run in this workspace, else estimated from what ships.

    Of the runs that ship, that of this level counts, else of the nearest below, else the lowest; a GPU stands above
    every CPU.
    """
    try:
        last = json.loads((workspace.passed / f"{lab}.json").read_text(encoding="utf-8"))
        if last["profile"] == profile:
            return Pace(last["seconds"], last["cells"], "this lab's last run in this workspace")
    except (OSError, ValueError, TypeError, KeyError):  # no run yet, or one of an older labkit
        pass

    def rank(level: str) -> int:
        return CPUS.index(level) if level in CPUS else len(CPUS)

    runs = [run for run in json.loads(SHIPPED.read_text(encoding="utf-8")).get(profile, ()) if lab in run["labs"]]
    runs.sort(key=lambda run: (rank(run["level"]), run["level"] == level))
    if not runs:
        return None
    run = ([run for run in runs if rank(run["level"]) <= rank(level)] or runs[:1])[-1]
    scale, found = probe_seconds() / run["probe_seconds"], run["labs"][lab]
    cells = {key: seconds * scale for key, seconds in found["cells"].items()}
    return Pace(found["seconds"] * scale, cells, f"a run on {run['level']}, {run['date']}, and a probe of this machine")


@cache
def probe_seconds() -> float:
    """What a fixed piece of work takes here, products and Python: the best of three, in a fifth of a second."""
    import numpy as np

    values = np.ones((768, 768), np.float32)

    def work() -> None:
        for _ in range(4):
            values @ values
        sum(i * i for i in range(500_000))

    return round(min(timeit.repeat(work, number=1, repeat=3)), 4)


def cell_seconds(executed: Path) -> dict[str, float]:
    """The slower cells of a notebook that papermill executed: key to seconds."""
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    cells = [cell for cell in cells if INJECTED not in cell["metadata"].get("tags", [])]
    took = {"".join(c["source"]): float(c["metadata"].get("papermill", {}).get("duration") or 0) for c in cells}
    return {cell_key(text): round(seconds, 1) for text, seconds in took.items() if seconds >= KEPT_SECONDS}


def rounded_up(seconds: float) -> str:
    """A time as people say it: `40 s`, `3 min`; seconds to the next ten, minutes to the next whole one."""
    return f"{max(10, -(-int(seconds) // 10) * 10)} s" if seconds < 95 else f"{-(-int(seconds) // 60)} min"


def say_before_long_cells(workspace: Workspace, lab: str, profile: str) -> None:
    """In a notebook: from now on each cell that is expected to take long says so in its first line."""
    from labkit.explorers import current_shell

    shell = current_shell()
    if shell is None:
        return

    @cache  # not before a cell runs: the probe takes a moment
    def known() -> Pace | None:
        return expected(workspace, lab, profile, this_machine().level)

    def before(info: Any) -> None:
        pace = known()
        seconds = pace.cells.get(cell_key(info.raw_cell or ""), 0) if pace else 0
        if pace and seconds >= NOTICEABLE_SECONDS:
            print(f"Takes about {rounded_up(seconds)} here (estimated from {pace.source}).", flush=True)

    while _registered:
        shell.events.unregister("pre_run_cell", _registered.pop())
    _registered.append(before)
    shell.events.register("pre_run_cell", before)
