"""The ledger: every measurement of a workspace, one JSON object a line, appended and never changed.

Notebooks hand each other files, never state; what compares, draws or publishes results reads only this file. A line is
written by one `write` to a file opened for appending, under a lock, so that two labs at once tear nothing. A reader
skips nothing silently: a line that is not a measurement is an error that names its number.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from labkit.errors import DataError, UsageError

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
        if self.kind not in get_args(Kind):
            raise UsageError(f"kind is {self.kind!r}", fix=f"use one of {', '.join(get_args(Kind))}")
        if self.purpose not in get_args(Purpose):
            raise UsageError(f"purpose is {self.purpose!r}", fix=f"use one of {', '.join(get_args(Purpose))}")

    @property
    def identity(self) -> tuple[str, ...]:
        """What makes two lines measurements of the same thing; the newest of them counts."""
        settings = json.dumps(self.settings, sort_keys=True)
        return (self.model, self.variant, self.task, self.backend, self.metric, settings, self.purpose)


_NAMES = {f.name for f in fields(Measurement)}
_DICTS = {"settings", "versions"}
_NEEDED = {"kind", "metric", "value", "variant", "model"}


# what JSON holds of each field
_NUMBERS = {"value", "stderr", "ci_low", "ci_high", "n"}
_OPTIONAL = (int, float, type(None))
_TYPES = {
    name: (int, float) if name == "value" else _OPTIONAL if name in _NUMBERS else dict if name in _DICTS else str
    for name in _NAMES
}


def _cut(path: Path, number: int) -> DataError:
    return DataError(
        f"{path}, line {number} has no end: a writer was stopped in the middle of it",
        why="its measurement is not whole",
        fix="delete that last line, then measure again",
    )


def _parse(line: bytes, number: int, path: Path) -> Measurement:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}, line {number} is not JSON: {error}",
            why="a result may be lost, so nothing is read past it",
            fix=f"look at the line, mend it or delete it: sed -n {number}p {path}",
        ) from error
    missing = _NEEDED - record.keys() if isinstance(record, dict) else _NEEDED
    unknown = record.keys() - _NAMES if isinstance(record, dict) else set()
    if missing or unknown:
        raise DataError(
            f"{path}, line {number} is not a measurement: missing {sorted(missing)}, unknown {sorted(unknown)}",
            why="it was written by another program or another version of labkit",
            fix="delete the line, or start a new workspace",
        )
    wrong = [name for name, value in record.items() if not isinstance(value, _TYPES[name]) or isinstance(value, bool)]
    if wrong or not abs(record["value"]) <= sys.float_info.max:  # NaN, infinity, a number of 400 digits
        raise DataError(
            f"{path}, line {number} is not a measurement: {', '.join(wrong) or 'value'} can't be what it holds",
            why="it was changed by hand or by another program",
            fix=f"look at the line, mend it or delete it: sed -n {number}p {path}",
        )
    return Measurement(**record)


def _entry(end: int, data: bytes) -> bytes:
    """A journal's contents: where the ledger ended, what is added there, and a digest that says whether it is whole."""
    return f"{end} {hashlib.sha256(data).hexdigest()}\n".encode() + data


def _write(handle: int, data: bytes) -> None:
    if os.write(handle, data) != len(data):
        raise OSError(f"no room for {len(data)} bytes")
    os.fsync(handle)


class Ledger:
    """The measurements of one workspace; a missing file is an empty ledger."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, measurements: Iterable[Measurement]) -> None:
        """Adds whole lines; on a full disk or a kill, either all of them or none remain."""
        text = "".join(json.dumps(asdict(m), sort_keys=False, allow_nan=False) + "\n" for m in measurements)
        if not text:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._finish(file.fileno())
            end = os.fstat(file.fileno()).st_size
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":  # glued to it, the new line would be lost as well
                raise _cut(self.path, self.path.read_bytes().count(b"\n") + 1)
            data = text.encode()
            try:
                self._journal.write_bytes(_entry(end, data))
                _write(file.fileno(), data)
            except OSError as error:
                os.ftruncate(file.fileno(), end)
                self._journal.unlink(missing_ok=True)
                raise DataError(
                    f"{self.path}: the measurement could not be written ({error})",
                    why="earlier lines are untouched, this one is lost",
                    fix="free some disk space and run the cell again",
                ) from error
            self._journal.unlink()

    @property
    def _journal(self) -> Path:
        """What is being added, and where: a kill stops the system in the middle of a write that crosses a page."""
        return self.path.with_name(f".part-{self.path.name}")

    def _finish(self, handle: int) -> None:
        """Adds whole what a killed writer was adding. Under the lock, so that no writer is at it any more."""
        if not self._journal.exists():
            return
        head, _, data = self._journal.read_bytes().partition(b"\n")
        first = head.split(b" ")[0]
        end = int(first) if first.isdigit() else 0
        untouched = end <= os.fstat(handle).st_size <= end + len(data)  # else somebody edited the ledger since
        if untouched and _entry(end, data) == head + b"\n" + data:  # else it was killed before it came to the ledger
            os.ftruncate(handle, end)
            _write(handle, data)
        self._journal.unlink()

    def read(self) -> list[Measurement]:
        """All measurements, oldest first."""
        if not self.path.exists():
            return []
        if self._journal.exists():
            with open(self.path, "ab", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._finish(file.fileno())
        lines = self.path.read_bytes().split(b"\n")
        if lines[-1]:
            raise _cut(self.path, len(lines))
        return [_parse(line, number, self.path) for number, line in enumerate(lines[:-1], start=1)]

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
