"""A figure that was measured several times: its median and how far the repeats lie apart, alone or as a ratio."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labkit.serving.load import Loaded
    from labkit.serving.phases import Phases


@dataclass(frozen=True)
class Repeated:
    """A figure over the repeats of a measurement: median, smallest and largest; whether the engine was compiled."""

    median: float
    low: float
    high: float
    repeats: int
    compiled: bool

    def __str__(self) -> str:
        median, low, high = (f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in (self.median, self.low, self.high))
        return median + (f" ({low} to {high})" if self.repeats > 1 else "")


def repeated(results: Sequence[Loaded | Phases], metric: str) -> Repeated:
    """The figure `metric` of what one measurement gave each time it was repeated."""
    values = [float(getattr(result, metric)) for result in results]
    compiled = all(result.compiled for result in results)
    return Repeated(statistics.median(values), min(values), max(values), len(values), compiled)


def ratio(ours: Sequence[Loaded | Phases], theirs: Sequence[Loaded | Phases], metric: str) -> Repeated:
    """Our figure over theirs: of the medians, and the smallest and largest that any of the repeats would give."""
    a, b = repeated(ours, metric), repeated(theirs, metric)
    return Repeated(a.median / b.median, a.low / b.high, a.high / b.low, min(a.repeats, b.repeats), a.compiled)
