"""A figure that was measured several times: its median and how far the repeats lie apart, alone or as a ratio."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labkit.serving.load import Loaded


@dataclass(frozen=True)
class Repeated:
    """A figure over the repeats of a measurement: median, smallest and largest; whether the engine was compiled."""

    median: float
    low: float
    high: float
    repeats: int
    compiled: bool

    @staticmethod
    def of(values: Sequence[float], compiled: bool) -> Repeated:
        return Repeated(statistics.median(values), min(values), max(values), len(values), compiled)

    def __str__(self) -> str:
        median, low, high = (f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in (self.median, self.low, self.high))
        return median + (f" ({low} to {high})" if self.repeats > 1 else "")


def repeated(results: Sequence[Loaded], metric: str) -> Repeated:
    """The figure `metric` of what one load gave each time it was repeated."""
    return Repeated.of([float(getattr(result, metric)) for result in results], all(r.compiled for r in results))


def ratio(ours: Repeated, theirs: Repeated) -> Repeated:
    """Our figure over theirs: of the medians, and the smallest and largest that any of the repeats would give."""
    repeats = min(ours.repeats, theirs.repeats)
    return Repeated(ours.median / theirs.median, ours.low / theirs.high, ours.high / theirs.low, repeats, ours.compiled)


def in_words(gain: Repeated) -> str:
    """Whether a ratio's repeats tell the two sides apart, as far as the digits that are shown of it."""
    if gain.repeats == 1:
        return "Measured once, so without a spread"
    if round(gain.low, 2) <= 1 <= round(gain.high, 2):
        return "The repeats do not tell the two apart"
    if gain.median > 1:
        return "Its slowest repeat is above the baseline's fastest"
    return "Its fastest repeat is below the baseline's slowest"
