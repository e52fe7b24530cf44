"""How long labs and their cells take on this machine, so that a lab and `labkit doctor` can say it beforehand.

The last run of a lab in this workspace comes first. Else it is estimated from what ships with labkit: runs on some
levels of CPU, which `make figures` writes, scaled by a short probe that those runs took too. A cell that was changed
has another key, and no time.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from labkit.hardware.machine import LEVELS
from labkit.workspace import Workspace

SHIPPED = Path(__file__).with_name("paces.json")
NOTICEABLE_SECONDS = 5.0
CPUS = ("other", *(name for name, _, _ in LEVELS))  # the levels without a GPU, from old to new
KEPT_SECONDS = 2.0  # a slower machine may wait noticeably where this one did not
INJECTED = "injected-parameters"  # papermill's tag


@dataclass(frozen=True)
class Pace:
    """Seconds of a whole lab, and of its slower cells by their keys. source: what they are taken from."""

    seconds: float
    cells: Mapping[str, float]
    source: str

    def of(self, cell: str) -> float | None:
        """The seconds of a cell, given by its text; None for a quick or an unknown one."""
        return self.cells.get(cell_key(cell))


def cell_key(cell: str) -> str:
    return hashlib.sha256(cell.strip().encode()).hexdigest()[:16]


def expected(workspace: Workspace, lab: str, profile: str, level: str) -> Pace | None:
    """What is known of a lab on this profile: from its last run in this workspace, else estimated from what ships."""
    try:
        last = json.loads((workspace.passed / f"{lab}.json").read_text(encoding="utf-8"))
        if last["profile"] == profile:
            return Pace(last["seconds"], last["cells"], "this lab's last run in this workspace")
    except (OSError, ValueError, TypeError, KeyError):  # no run yet, or one of an older labkit
        pass
    runs = [run for run in json.loads(SHIPPED.read_text(encoding="utf-8")).get(profile, ()) if lab in run["labs"]]
    if not runs:
        return None
    run = nearest(runs, level)
    found, scale = run["labs"][lab], probe_seconds() / run["probe_seconds"]
    cells = {key: seconds * scale for key, seconds in found["cells"].items()}
    return Pace(found["seconds"] * scale, cells, f"a run on {run['level']}, {run['date']}, and a probe of this machine")


def nearest(runs: Sequence[Mapping[str, Any]], level: str) -> Mapping[str, Any]:
    """The run of this level, else of the nearest below, else of the lowest; a GPU stands above every CPU."""

    def rank(of: str) -> int:
        return CPUS.index(of) if of in CPUS else len(CPUS)

    below = [run for run in runs if rank(run["level"]) <= rank(level)]
    if not below:
        return min(runs, key=lambda run: rank(run["level"]))
    return max(below, key=lambda run: (run["level"] == level, rank(run["level"])))


@cache
def probe_seconds() -> float:
    """What a fixed piece of work takes here, products and Python: the best of three, in a fifth of a second."""
    import numpy as np

    values, times = np.ones((768, 768), np.float32), []
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(4):
            values @ values
        sum(i * i for i in range(500_000))
        times.append(time.perf_counter() - began)
    return round(min(times), 4)


def cell_seconds(executed: Path) -> dict[str, float]:
    """The slower cells of a notebook that papermill executed: key to seconds. Empty for what can't be read."""
    try:
        cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return {}
    return {
        cell_key("".join(cell["source"])): round(seconds, 1)
        for cell in cells
        if cell["cell_type"] == "code" and INJECTED not in cell["metadata"].get("tags", [])
        if (seconds := float(cell["metadata"].get("papermill", {}).get("duration") or 0)) >= KEPT_SECONDS
    }


def rounded_up(seconds: float) -> str:
    """A time as people say it: `40 s`, `3 min`; seconds to the next ten, minutes to the next whole one."""
    return f"{max(10, -(-int(seconds) // 10) * 10)} s" if seconds < 95 else f"{-(-int(seconds) // 60)} min"
