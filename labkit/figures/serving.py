"""Pictures of servers under load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from labkit.figures.drawing import GREY, PALETTE, Figure, new_axes

if TYPE_CHECKING:
    from labkit.serving import Repeated


def crossover(
    concurrencies: Sequence[int],
    speedups: Mapping[str, Sequence[Repeated]],
    points: Mapping[str, Sequence[tuple[float, float]]],
    baseline: str,
    description: str,
) -> Figure:
    """Which variant pays at which load.

    Left, over the number of requests at once: `speedups` gives a variant's ratio to the baseline at each of
    `concurrencies`, the baseline being 1. Right, latency against throughput: `points` gives a variant's (ms
    between two tokens, output tokens a second) at each of them, joined by a line.
    """
    figure, (left, right) = new_axes(1, 2, height=3.4)
    colors = dict(zip([baseline, *(name for name in points if name != baseline)], PALETTE, strict=False))
    left.axhline(1.0, color=GREY, linewidth=1.2, linestyle="--", label=baseline)
    for name, values in speedups.items():
        middle = [each.median for each in values]
        spread = [[each.median - each.low for each in values], [each.high - each.median for each in values]]
        left.errorbar(
            concurrencies, middle, yerr=spread, fmt="o-", color=colors[name], markersize=4, capsize=3, label=name
        )
    left.set_xscale("log", base=2)
    left.set_xticks(concurrencies, [str(c) for c in concurrencies])
    left.set_xlabel("requests at once")
    left.set_ylabel(f"output tok/s ÷ those of {baseline}")
    left.set_ylim(bottom=0)
    left.legend(frameon=False, fontsize=8)
    for name, pairs in points.items():
        right.plot(
            [ms for ms, _ in pairs], [rate for _, rate in pairs], "o-", color=colors[name], markersize=4, label=name
        )
        for count, (ms, rate) in zip(concurrencies, pairs, strict=True):
            right.annotate(str(count), (ms, rate), textcoords="offset points", xytext=(4, -9), fontsize=8, color=GREY)
    right.set_xlabel("median ms between two tokens")
    right.set_ylabel("output tok/s, all requests")
    right.set_xlim(left=0)
    right.set_ylim(bottom=0)
    return Figure(figure, description)
