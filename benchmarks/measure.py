"""The instrument, a command as a whole process tree and the same for both sides of a pair, and what it found, as data.

`results.json` keeps every single run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from labkit import process
from labkit.engine import OFFLINE, error_lines
from labkit.errors import ProcessFailed

ROOT = Path(__file__).parents[1]
SIDES = Path(__file__).parent / "sides"
RESULTS = Path(__file__).with_name("results.json")
LONGEST_LOOK_SECONDS = 0.05  # between two looks at a process; what a wall time is uncertain by
DEADLINE_SECONDS = 1800.0

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
    date: str = ""


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
    date: str = ""


@dataclass(frozen=True)
class Report:
    """What was measured on one machine with one stack."""

    machine: str
    versions: dict[str, str]
    results: tuple[Result, ...] = ()
    growth: tuple[Growth, ...] = ()

    @property
    def names(self) -> set[str]:
        return {result.name for result in self.results} | {growth.name for growth in self.growth}

    def having(self, new: Result | Growth) -> Report:
        """The same with a result in the place of an older one, or behind the others."""
        if isinstance(new, Growth):
            return replace(self, growth=tuple({one.name: one for one in (*self.growth, new)}.values()))
        return replace(self, results=tuple({one.name: one for one in (*self.results, new)}.values()))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> Report:
        found = json.loads(text)
        kinds: dict[str, Any] = {"bars": Bar, "ours": Run, "theirs": Run, "points": Point}

        def whole(raw: dict[str, Any]) -> dict[str, Any]:
            return {name: tuple(kinds[name](**one) for one in v) if name in kinds else v for name, v in raw.items()}

        found["results"] = tuple(Result(**whole(one)) for one in found["results"])
        found["growth"] = tuple(Growth(**whole(one)) for one in found["growth"])
        return Report(**found)


# --- a command, measured ----------------------------------------------------------------------------------------------


def timed(
    command: Sequence[str],
    log: Path,
    *,
    deadline_seconds: float = DEADLINE_SECONDS,
    env: Mapping[str, str] = OFFLINE,
    cwd: Path = ROOT,
) -> Run:
    """Runs a command to its end and says what it took; raises ProcessFailed, with its log's error lines, if it fails.

    It is looked at every 2 ms at first, later every 50 ms; its memory, the most that the process tree held with shared
    pages counted once, as often as takes 2% of a core. A developer's settings reach no benchmark; set to nothing they
    count as not set. (With PYTHONDONTWRITEBYTECODE labkit, in a checkout, would be compiled anew each time.)
    """
    unset = {name: "" for name in os.environ if name.startswith("LABKIT_") or name == "PYTHONDONTWRITEBYTECODE"}
    began, how = time.monotonic(), ""
    with process.Child(command, log, {**unset, **env}, cwd) as child:
        while child.poll() is None and not how:
            elapsed = time.monotonic() - began
            how = f"did not end within {deadline_seconds:.0f} s" if elapsed > deadline_seconds else ""
            time.sleep(min(LONGEST_LOOK_SECONDS, 0.002 + elapsed / 50))
        if not how:
            finished = child.finished()
            how = f"ended with exit code {finished.returncode}" if finished.returncode else ""
    if how:
        raise ProcessFailed(
            f"{' '.join(map(str, command))} {how}",
            why="\n".join(error_lines(log)) or "(its log is empty)",
            fix="mend it and measure again: a failed side has no time",
        )
    return Run(round(finished.wall_seconds, 3), finished.peak_bytes)


def script(name: str, scratch: Path, *words: Any, env: Mapping[str, str] = OFFLINE) -> Run:
    """Runs a script of `sides/`."""
    command = [sys.executable, str(SIDES / name), *map(str, words)]
    return timed(command, scratch / f"{name}.log", env=env, cwd=scratch)


def ours(command: str, scratch: Path, *words: Any) -> tuple[Run, Any]:
    """Runs a command of `sides/ours.py`; also gives what it answered."""
    answer = scratch / "answer.json"
    run = script("ours.py", scratch, command, answer, *words)
    return run, json.loads(answer.read_text(encoding="utf-8"))


def interleaved(
    ours: Callable[[], Run], theirs: Callable[[], Run], pairs: int | None
) -> tuple[tuple[Run, ...], tuple[Run, ...]]:
    """A B A B ...: what else the machine does meets both sides alike.

    pairs: None for five, or for three or one where the first one's slower side took half a minute or five.
    """
    found = [(ours(), theirs())]
    slower = max(run.wall_seconds for run in found[0])
    pairs = pairs or (5 if slower < 30 else 3 if slower < 300 else 1)
    found += [(ours(), theirs()) for _ in range(1, pairs)]
    return tuple(one for one, _ in found), tuple(other for _, other in found)
