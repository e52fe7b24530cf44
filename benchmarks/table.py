"""From runs to tables: medians, the ratio of two medians with its spread over pairs, verdicts; and README.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from benchmarks.measure import Bar, Growth, Quantity, Report, Result
from labkit import ops as text
from tools.tables import markdown_table

README = Path(__file__).with_name("README.md")
GPU = Path(__file__).with_name("gpu.md")
HEADER = ("what", "ours (n)", "theirs (n)", "ratio (pairs)", "bar", "verdict")
GROWTH_HEADER = ("what", "sizes", "measured", "exponent", "bar", "verdict")
LINEAR = 1.05  # 1, and what a fit through three points is uncertain by
NAMES: dict[Quantity, str] = {"wall_seconds": "wall time", "peak_bytes": "peak memory"}
NONE = "–"


def rows(results: Iterable[Result]) -> list[list[str]]:
    """Rows of text in the order of HEADER: one for each quantity of each benchmark."""
    return [_row(result, bar) for result in results for bar in result.bars]


def _row(result: Result, bar: Bar) -> list[str]:
    """Medians, and their ratio with the smallest and largest of the single pairs, which belong together by position."""
    ours, theirs = ([float(getattr(run, bar.quantity)) for run in runs] for runs in (result.ours, result.theirs))
    measured, other, ratio = statistics.median(ours), NONE, NONE
    most = "" if bar.most is None else amount(bar.most, bar.quantity)
    cells = [f"{result.what}: {NAMES[bar.quantity]}", f"{amount(measured, bar.quantity)} ({len(ours)})"]
    if theirs:
        pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
        other = f"{amount(statistics.median(theirs), bar.quantity)} ({len(theirs)})"
        measured /= statistics.median(theirs)
        ratio = f"{measured:.3f} ({min(pairs):.3f} to {max(pairs):.3f})"
        most = "" if bar.most is None else f"{bar.most:.2f}"
    if bar.most is None:
        return [*cells, other, ratio, NONE, "no bar"]
    return [*cells, other, ratio, f"≤ {most}", "met" if measured <= bar.most else "not met"]


def amount(value: float, quantity: Quantity) -> str:
    """Seconds or bytes for a reader: milliseconds below a tenth of a second, two digits below ten."""
    if quantity == "peak_bytes":
        return text.size(value)
    if value < 0.1:
        return f"{value * 1e3:.1f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def exponent(growth: Growth, quantity: Quantity) -> float:
    """k of the best fit of size ** k: the slope of a line through the logarithms, by least squares."""
    y = [math.log(value) for value in _grown(growth, quantity)]
    return statistics.linear_regression([math.log(point.size) for point in growth.points], y).slope


def _grown(growth: Growth, quantity: Quantity) -> list[float]:
    return [point.seconds if quantity == "wall_seconds" else float(point.peak_bytes or 0) for point in growth.points]


def growth_rows(growths: Iterable[Growth]) -> list[list[str]]:
    """Rows of text in the order of GROWTH_HEADER: one for time, and one for memory where it was measured."""
    found = []
    for growth in growths:
        sizes = ", ".join(_count(point.size) for point in growth.points) + f" {growth.unit}"
        for quantity, name in NAMES.items():
            values = _grown(growth, quantity)
            if all(values):
                k = exponent(growth, quantity)
                measured = ", ".join(amount(value, quantity) for value in values)
                verdict = "met" if k <= LINEAR else "not met"
                found.append([f"{growth.what}: {name}", sizes, measured, f"{k:.2f}", f"≤ {LINEAR}", verdict])
    return found


def _count(size: float) -> str:
    units = ((1e9, "B"), (1e6, "M"))
    return next((f"{size / unit:.3g}{letter}" for unit, letter in units if size >= unit), f"{size:,.0f}")


def terminal(found: Report) -> str:
    """The whole table for a terminal, and under it what was checked of the outputs."""
    lines = [text.table(HEADER, rows(found.results), right=(1, 2, 3, 4))] if found.results else []
    lines += [f"{result.what}: {result.checked}." for result in found.results if result.checked]
    lines += ["", text.table(GROWTH_HEADER, growth_rows(found.growth), right=(3, 4))] if found.growth else []
    return "\n".join(lines)


# --- README.md --------------------------------------------------------------------------------------------------------

HEAD = """\
<!-- Generated from results.json by `python -m benchmarks --keep`. Do not edit. -->
# Benchmarks

labkit against the thing it replaces: `make bench` measures in minutes what takes minutes, `make bench-full` all of it.
`make bench ARGS="--only fp8 --runs 5"` measures a part; with `--keep` it goes into results.json and this page.

Every side is a whole process, imports included: wall seconds from its start to its end, and the most memory that its
process tree held, shared pages counted once. The two sides of a pair take turns in the same run. A ratio is that of the
medians, ours divided by theirs, with the smallest and largest of the single pairs; below 1 labkit is faster or smaller.
Of vLLM the seconds are those of a load, or of a step.
"""

GROWTH_HEAD = """\
## How cost grows

The same work at several sizes, and the exponent of the size that fits its time or memory best: 1 is linear. Imports are
not in it, and memory is what the work added.
"""

GPU_HEAD = """\
## On a GPU

What `python -m benchmarks.gpu --output benchmarks/gpu.md` found: FP8 against BF16 matrix products at the shapes of a
7B model, two quantizes with the GPU's memory, and the tests marked `gpu`. The roof is what the chip's data sheet
allows, be it arithmetic or memory. labkit digests every file and compares what was saved with the model in
memory, and the bare script does not; and labkit's side comes first. `--dry-run` takes the same steps on a CPU.
"""


def readme(report: Report, names: Iterable[str]) -> str:
    """The whole README as Markdown. names: of all that can be measured."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    parts = [HEAD, markdown_table(HEADER, rows(report.results)), ""]
    parts += [GROWTH_HEAD, markdown_table(GROWTH_HEADER, growth_rows(report.growth)), ""]
    parts += [f"Measured on {report.machine}; {versions}.", ""]
    if lacking := [name for name in names if name not in report.names]:
        parts += [f"Not measured yet: {', '.join(lacking)}.", ""]
    parts += [GPU_HEAD, GPU.read_text(encoding="utf-8"), "## What is compared", ""]
    return "\n".join([*parts, *map(_described, report.results), *map(_described, report.growth)]) + "\n"


def _described(one: Result | Growth) -> str:
    more = ""
    if isinstance(one, Result):
        more += f" Against: {one.against}." if one.against else ""
        more += f" Checked: {one.checked}." if one.checked else ""
    return f"- **{one.what}** (`--only {one.name}`).{more} {one.date}, load average before: {one.load:.1f}."
