"""The pictures of the explorers: drawn again with every move of a slider, so they draw little.

Their margins are fixed: to find them anew takes matplotlib as long as all the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from labkit.figures.drawing import BLUE, GREY, ORANGE, PALETTE, RED, SKY, Figure, new_axes, plain_numbers

BINS = 60


def grid_over_values(values: Any, grid: Any, name: str, description: str) -> Figure:
    """A histogram of values [n], and under it the points of a grid [m] on the same axis; both in the values' unit."""
    margins = {"left": 0.09, "right": 0.98, "top": 0.97, "bottom": 0.18, "hspace": 0.12}
    figure, (top, bottom) = new_axes(2, 1, height=2.6, margins=margins, sharex=True, height_ratios=[3, 1])
    reach = float(values.abs().max()) * 1.25
    counts, edges = values.histogram(BINS, range=(-reach, reach))
    top.stairs(counts.tolist(), edges.tolist(), fill=True, color=SKY)
    top.set_ylabel("weights")
    points = [point for point in grid.tolist() if abs(point) <= reach]
    bottom.vlines(points, 0, 1, color=BLUE, linewidth=0.7)
    bottom.set_yticks([])
    bottom.grid(False)
    bottom.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    bottom.set_xlim(-reach, reach)
    ends = sorted(end for end in (float(grid.min()), float(grid.max())) if abs(end) < reach)
    for ax in (top, bottom):
        for end in ends:
            ax.axvline(end, color=RED, linewidth=1.2, linestyle="--")
    bottom.set_xlabel("value; dashed: the grid's ends" if ends else "value")
    return Figure(figure, description)


def smoothed_channels(
    inputs: tuple[Any, Any],
    weights: tuple[Any, Any],
    marked: Sequence[int],
    errors: tuple[float, float],
    description: str,
) -> Figure:
    """Channel maxima before and after, [channels] each, of a layer's input and weight; and the output's two errors."""
    margins = {"left": 0.06, "right": 0.98, "top": 0.9, "bottom": 0.17, "wspace": 0.25}
    figure, (left, middle, right) = new_axes(1, 3, height=2.8, margins=margins, width_ratios=[3, 3, 1.4])
    for ax, (before, after), name in ((left, inputs, "input"), (middle, weights, "weight")):
        for values, color, label in ((before, GREY, "before"), (after, BLUE, "after")):
            ax.plot(values.tolist(), ".", markersize=3, color=color, label=label)
            at = [float(values[channel]) for channel in marked]
            ax.plot(list(marked), at, "o", markersize=5, color=color, markeredgecolor=RED)
        ax.set_yscale("log")
        plain_numbers(ax.yaxis)
        ax.set_title(f"{name}: largest |value|", fontsize=9)
        ax.set_xlabel("channel")
    left.legend(frameon=False, fontsize=8)
    right.bar(["before", "after"], errors, color=[GREY, BLUE])
    right.set_title("output's error", fontsize=9)
    return Figure(figure, description)


def memory_bars(
    parts: Mapping[str, tuple[float, float, float]], chosen: str, usable: float, description: str
) -> Figure:
    """Stacked bars in GB, a row for each scheme: (weights, KV cache, activations); `usable` is a line."""
    figure, ax = new_axes(height=2.6, margins={"left": 0.13, "right": 0.83, "top": 0.97, "bottom": 0.18})
    names = ("weights", "KV cache", "activations")
    for place, (scheme, sizes) in enumerate(parts.items()):
        begin = 0.0
        for size, name, color in zip(sizes, names, (BLUE, ORANGE, PALETTE[2]), strict=True):
            label = name if place == 0 else None
            ax.barh(place, size, 0.62, left=begin, color=color, alpha=1.0 if scheme == chosen else 0.35, label=label)
            begin += size
    ax.axvline(usable, color=RED, linewidth=1.4, linestyle="--", label="usable")
    ax.set_yticks(range(len(parts)), list(parts))
    ax.invert_yaxis()
    ax.set_xlabel("GB")
    for handle in ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0)).legend_handles:
        handle.set_alpha(1.0)
    return Figure(figure, description)


def power_curves(counts: Sequence[int], power: Mapping[str, Sequence[float]], n: int, description: str) -> Figure:
    """The chance to see a loss, 0 to 1, over the number of samples; `n` is marked."""
    figure, ax = new_axes(height=2.8, margins={"left": 0.08, "right": 0.98, "top": 0.97, "bottom": 0.17})
    for (name, values), color in zip(power.items(), PALETTE, strict=False):
        ax.plot(counts, values, "o-", color=color, markersize=4, label=name)
    ax.axvline(n, color=RED, linewidth=1.2, linestyle="--", label=f"{n:,} samples")
    ax.axhline(0.8, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_xscale("log")
    plain_numbers(ax.xaxis)
    ax.set_ylim(0, 1.03)
    ax.set_xlabel("samples")
    ax.set_ylabel("chance to see the loss")
    ax.legend(frameon=False, fontsize=8)
    return Figure(figure, description)
