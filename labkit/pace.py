"""How long a lab's cells take: kept by runs, by what stands in a cell, so that a lab can say it before a long one.

Times of this workspace's own runs come first, then those that ship with labkit, which `make figures` writes. A cell
that was changed has another key, and no time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.workspace import Workspace

SHIPPED = Path(__file__).with_name("paces.json")
NOTICEABLE_SECONDS = 5.0
INJECTED = "injected-parameters"  # papermill's tag


@dataclass(frozen=True)
class Pace:
    """Seconds of a lab's noticeable cells by their keys. machine: where they were measured; "" for this workspace."""

    machine: str
    cells: Mapping[str, float]

    def of(self, source: str) -> float | None:
        """The seconds that a cell with this source took; None for a quick or an unknown one."""
        return self.cells.get(cell_key(source))


def cell_key(source: str) -> str:
    return hashlib.sha256(source.strip().encode()).hexdigest()[:16]


def expected(workspace: Workspace, lab: str, profile: str) -> Pace | None:
    """What is known of a lab's cells on this profile: from its last run in this workspace, else what labkit ships."""
    for path, keys in ((workspace.passed / f"{lab}.json", ()), (SHIPPED, (profile, lab))):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            for key in keys:
                found = found[key]
            if found.get("profile", profile) == profile and found["cells"]:
                return Pace(found.get("machine", ""), {key: float(value) for key, value in found["cells"].items()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError):  # no run yet, or one of an older labkit
            continue
    return None


def cell_seconds(executed: Path) -> dict[str, float]:
    """The noticeable cells of a notebook that papermill executed: key to seconds. Empty for what can't be read."""
    try:
        cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return {}
    return {
        cell_key("".join(cell["source"])): round(seconds, 1)
        for cell in cells
        if cell["cell_type"] == "code" and INJECTED not in cell["metadata"].get("tags", [])
        if (seconds := _duration(cell)) >= NOTICEABLE_SECONDS
    }


def _duration(cell: Mapping[str, Any]) -> float:
    return float(cell["metadata"].get("papermill", {}).get("duration") or 0)


def rounded_up(seconds: float) -> str:
    """A measured time as people say it: `40 s`, `3 min`; seconds to the next ten, minutes to the next whole one."""
    return f"{max(10, -(-int(seconds) // 10) * 10)} s" if seconds < 95 else f"{-(-int(seconds) // 60)} min"
