"""What was measured, as data, and `results.json`, which keeps every single run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

RESULTS = Path(__file__).with_name("results.json")

Quantity = Literal["wall_seconds", "peak_bytes"]


@dataclass(frozen=True)
class Run:
    """One run of one side: a whole process tree (or several in a row: seconds added up, the largest peak)."""

    wall_seconds: float
    peak_bytes: int | None = None  # not measured of a part of a process


@dataclass(frozen=True)
class Bar:
    """What must not be exceeded: a ratio of medians where there are two sides, else the median in the quantity's unit.

    most: None where the quantity is only shown.
    """

    quantity: Quantity
    most: float | None = None


@dataclass(frozen=True)
class Result:
    """One benchmark. theirs is empty where nothing is replaced. checked: what was asserted of the two sides' outputs.

    load: the machine's load average just before it began; far above 0, others were using the machine.
    """

    name: str
    what: str
    against: str
    bars: tuple[Bar, ...]
    ours: tuple[Run, ...]
    theirs: tuple[Run, ...] = ()
    checked: str = ""
    load: float = 0.0


@dataclass(frozen=True)
class Point:
    """What one size took."""

    size: float
    seconds: float
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Growth:
    """The same work at several sizes, counted in `unit`."""

    name: str
    what: str
    unit: str
    points: tuple[Point, ...]
    load: float = 0.0


@dataclass(frozen=True)
class Report:
    """One run of the benchmarks. date is UTC, ISO 8601; wall_seconds what all of it took, preparation included.

    sittings: more than one where a run that was cut off was gone on with.
    """

    machine: str
    versions: dict[str, str]
    date: str
    wall_seconds: float
    results: tuple[Result, ...]
    growth: tuple[Growth, ...] = ()
    sittings: int = 1

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> Report:
        raw = json.loads(text)
        results = tuple(_result(one) for one in raw["results"])
        growth = tuple(_growth(one) for one in raw.get("growth", ()))
        return Report(**{**raw, "results": results, "growth": growth})


def _result(raw: dict[str, Any]) -> Result:
    more: dict[str, Any] = {
        "bars": tuple(Bar(**bar) for bar in raw["bars"]),
        "ours": tuple(Run(**run) for run in raw["ours"]),
        "theirs": tuple(Run(**run) for run in raw["theirs"]),
    }
    return Result(**{**raw, **more})


def _growth(raw: dict[str, Any]) -> Growth:
    return Growth(**{**raw, "points": tuple(Point(**point) for point in raw["points"])})
