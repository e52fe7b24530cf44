"""The ledger: every measurement of a workspace, one JSON object a line, appended and never changed.

Notebooks hand each other files, never state; what compares, draws or publishes results reads only this file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock

from labkit.errors import DataError, UsageError, first_line
from labkit.files import write_atomically

Kind = Literal["accuracy", "perplexity", "size", "quantize", "throughput", "latency", "memory", "prediction"]
Purpose = Literal["headline", "sweep", "trap"]
SPEEDUP = "speedup"  # the metric that says how many times the baseline's throughput a variant has


def utc_now() -> str:
    """The time as the ledger writes it: ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Measurement:
    """One number, with all that is needed to believe it.

    kind and metric say what was measured, `unit` in what, `n` over how many samples; `stderr`, `ci_low` and `ci_high`
    are in the unit of `value`; of a throughput or latency, which are repeated, the smallest and largest repeat.
    `settings` holds whatever moves the number (template, BOS, few-shot, limit, seed, ...). `purpose` is `headline` for
    what summaries show, `sweep` for a point of a curve, `trap` for a wrong way shown on purpose.
    """

    kind: Kind
    metric: str
    value: float
    variant: str
    model: str
    task: str = ""
    backend: str = ""
    stderr: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = None
    unit: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    machine: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    purpose: Purpose = "headline"
    lab: str = ""
    run: str = ""
    time: str = field(default_factory=utc_now)

    def __post_init__(self) -> None:
        for name, value, known in (("kind", self.kind, get_args(Kind)), ("purpose", self.purpose, get_args(Purpose))):
            if value not in known:
                raise UsageError(f"{name} is {value!r}", fix=f"use one of {', '.join(known)}")

    @property
    def identity(self) -> tuple[str, ...]:
        """What makes two lines measurements of the same thing; the newest of them counts."""
        settings = json.dumps(self.settings, sort_keys=True)
        return (self.model, self.variant, self.task, self.backend, self.metric, settings, self.purpose)


_NUMBERS = {"value": (int, float)} | dict.fromkeys(("stderr", "ci_low", "ci_high", "n"), (int, float, type(None)))
_TYPES = {f.name: (str,) for f in fields(Measurement)} | _NUMBERS | {"settings": (dict,), "versions": (dict,)}


class Ledger:
    """The measurements of one workspace, appended and never changed; a missing file is an empty ledger.

    A reader skips nothing silently: a line that is not a measurement is an error that names its number.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, measurements: Iterable[Measurement]) -> None:
        """Adds whole lines; on a full disk or a kill at any moment, either all of them or none remain.

        The file is written anew beside the old one, which it replaces in one step: it has some hundred lines.
        """
        text = "".join(json.dumps(asdict(m), allow_nan=False) + "\n" for m in measurements)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock")):
                before = self._whole_lines()  # glued to half a line, the new one would be lost as well
                write_atomically(self.path, before + text.encode())
        except OSError as error:
            why, fix = "earlier lines are untouched, this one is lost", "free some disk space and run the cell again"
            raise DataError(f"{self.path}: the measurement could not be written ({error})", why, fix) from error

    def read(self) -> list[Measurement]:
        """All measurements, oldest first."""
        lines = self._whole_lines().split(b"\n")[:-1]
        return [self._parse(line, number) for number, line in enumerate(lines, start=1)]

    def newest(self, **equal: Any) -> list[Measurement]:
        """The newest line of each measured thing whose fields equal the given ones, in the order first measured."""
        newest: dict[tuple[str, ...], Measurement] = {}
        for measurement in self.read():
            if all(getattr(measurement, name) == wanted for name, wanted in equal.items()):
                newest[measurement.identity] = measurement
        return list(newest.values())

    def headlines(self, **equal: Any) -> list[Measurement]:
        """The newest lines that summaries show."""
        return self.newest(purpose="headline", **equal)

    def _whole_lines(self) -> bytes:
        data = self.path.read_bytes() if self.path.exists() else b""
        if data and not data.endswith(b"\n"):
            number = data.count(b"\n") + 1
            what = f"{self.path}, line {number} has no end: a writer was stopped in the middle of it"
            raise DataError(what, "its measurement is not whole", "delete that last line, then measure again")
        return data

    def _parse(self, line: bytes, number: int) -> Measurement:
        try:
            found = Measurement(**json.loads(line))
            wrong = [name for name, types in _TYPES.items() if type(getattr(found, name)) not in types]
            if wrong or not abs(found.value) <= sys.float_info.max:  # NaN, infinity, a number of 400 digits
                raise ValueError(f"{', '.join(wrong) or 'value'} can't be what it holds")
            return found
        except (ValueError, TypeError, RecursionError, UsageError) as error:
            what = f"{self.path}, line {number} is no measurement: {first_line(error)}"
            fix = f"look at the line, mend it or delete it: sed -n {number}p {self.path}"
            raise DataError(what, "a result may be lost, so nothing is read past it", fix) from error
