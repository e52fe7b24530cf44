"""From runs to a table: medians, the ratio of the two medians with the spread over pairs, and the verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.results import Bar, Growth, Quantity, Result, Run
from labkit.ops import text

GROWTH_HEADER = ("what", "sizes", "measured", "exponent", "bar", "verdict")
LINEAR = 1.05  # 1, and what a fit through three points is uncertain by
HEADER = ("what", "ours (n)", "theirs (n)", "ratio (pairs)", "bar", "verdict")
NAMES: dict[Quantity, str] = {"wall_seconds": "wall time", "peak_bytes": "peak memory"}
NONE = "–"


@dataclass(frozen=True)
class Ratio:
    """ours ÷ theirs: of the medians, and the smallest and largest of the single pairs."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One quantity of one benchmark. `ours` and `theirs` are medians in the quantity's unit; theirs may be None."""

    result: Result
    bar: Bar
    ours: float
    theirs: float | None
    ratio: Ratio | None

    @property
    def measured(self) -> float:
        """What the bar is held against."""
        return self.ratio.value if self.ratio else self.ours

    @property
    def verdict(self) -> Literal["met", "not met", "no bar"]:
        if self.bar.most is None:
            return "no bar"
        return "met" if self.measured <= self.bar.most else "not met"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """The ratio of two interleaved series; pairs belong together by position."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(ours) / statistics.median(theirs), min(pairs), max(pairs))


def rows(results: Sequence[Result]) -> list[Row]:
    """A row for each quantity of each benchmark."""
    return [_row(result, bar) for result in results for bar in result.bars]


def _row(result: Result, bar: Bar) -> Row:
    ours, theirs = values(result.ours, bar.quantity), values(result.theirs, bar.quantity)
    return Row(
        result,
        bar,
        statistics.median(ours),
        statistics.median(theirs) if theirs else None,
        ratio(ours, theirs) if theirs else None,
    )


def values(runs: Sequence[Run], quantity: Quantity) -> list[float]:
    """One quantity of every run."""
    return [float(getattr(run, quantity)) for run in runs]


def cells(row: Row) -> list[str]:
    """A row as text, in the order of HEADER."""
    quantity, result = row.bar.quantity, row.result
    return [
        f"{result.what}: {NAMES[quantity]}",
        f"{amount(row.ours, quantity)} ({len(result.ours)})",
        NONE if row.theirs is None else f"{amount(row.theirs, quantity)} ({len(result.theirs)})",
        NONE if row.ratio is None else f"{row.ratio.value:.3f} ({row.ratio.low:.3f} to {row.ratio.high:.3f})",
        NONE if row.bar.most is None else f"≤ {bar_text(row)}",
        row.verdict,
    ]


def bar_text(row: Row) -> str:
    assert row.bar.most is not None
    return f"{row.bar.most:.2f}" if row.ratio else amount(row.bar.most, row.bar.quantity)


def amount(value: float, quantity: Quantity) -> str:
    """Seconds or bytes for a reader: milliseconds below a tenth of a second, two digits below ten."""
    if quantity == "peak_bytes":
        return text.size(value)
    if value < 0.1:
        return f"{value * 1e3:.1f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def exponent(growth: Growth, quantity: Literal["seconds", "peak_bytes"]) -> float:
    """k of the best fit of size ** k: the slope of a line through the logarithms, by least squares."""
    x = [math.log(point.size) for point in growth.points]
    y = [math.log(getattr(point, quantity)) for point in growth.points]
    return statistics.linear_regression(x, y).slope


def growth_rows(growths: Sequence[Growth]) -> list[list[str]]:
    """Rows of text in the order of GROWTH_HEADER: one for time, and one for memory where it was measured."""
    found = []
    for growth in growths:
        sizes = ", ".join(_count(point.size) for point in growth.points) + f" {growth.unit}"
        measured = [", ".join(amount(point.seconds, "wall_seconds") for point in growth.points)]
        quantities: list[Literal["seconds", "peak_bytes"]] = ["seconds"]
        if all(point.peak_bytes for point in growth.points):
            quantities.append("peak_bytes")
            measured.append(", ".join(amount(point.peak_bytes or 0, "peak_bytes") for point in growth.points))
        for quantity, shown in zip(quantities, measured, strict=True):
            k = exponent(growth, quantity)
            name = NAMES["wall_seconds" if quantity == "seconds" else "peak_bytes"]
            verdict = "met" if k <= LINEAR else "not met"
            found.append([f"{growth.what}: {name}", sizes, shown, f"{k:.2f}", f"≤ {LINEAR}", verdict])
    return found


def _count(size: float) -> str:
    return next(
        (f"{size / unit:.3g}{letter}" for unit, letter in ((1e9, "B"), (1e6, "M")) if size >= unit), f"{size:,.0f}"
    )


def terminal(results: Sequence[Result], growths: Sequence[Growth] = ()) -> str:
    """The whole table for a terminal, and under it what was checked of the outputs."""
    lines = [text.table(HEADER, [cells(row) for row in rows(results)], right=(1, 2, 3, 4))] if results else []
    lines += [f"{result.what}: {result.checked}." for result in results if result.checked]
    lines += ["", text.table(GROWTH_HEADER, growth_rows(growths), right=(3, 4))] if growths else []
    return "\n".join(lines)
