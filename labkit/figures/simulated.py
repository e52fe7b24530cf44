"""Pictures of simulated schemes."""

from __future__ import annotations

from collections.abc import Mapping

from labkit.figures.drawing import GREY, PALETTE, Figure, new_axes, plain_numbers

CLOSE = 1.5  # ratios up to this one are in the close-up


def ratios(series: Mapping[str, Mapping[str, tuple[float, float, float]]], xlabel: str, description: str) -> Figure:
    """Ratios to 1, a row for each scheme: all of them at the left, the close ones with their intervals at the right.

    series: a name (of a method) to rows, each a scheme's name to (value, low, high); all series have the same rows.
    """
    names = list(next(iter(series.values())))
    figure, (left, right) = new_axes(1, 2, height=0.32 * len(names) + 1.1, sharey=True)
    seen = []
    for number, ((name, rows), color) in enumerate(zip(series.items(), PALETTE, strict=False)):
        shift = (number - (len(series) - 1) / 2) * 0.3
        for place, (value, low, high) in enumerate(rows.values()):
            label = name if place == 0 else None
            left.plot(value, place + shift, "o", color=color, markersize=5, label=label)
            if value < CLOSE:
                right.plot([low, high], [place + shift] * 2, color=color, linewidth=1.5)
                right.plot(value, place + shift, "o", color=color, markersize=4)
                seen += [low, high]
    for ax in (left, right):
        ax.axvline(1.0, color=GREY, linewidth=1.0, linestyle="--")
        ax.grid(axis="x", color="#E5E5E5", linewidth=0.6)
        ax.set_xlabel(xlabel, fontsize=9)
    left.set_xscale("log")
    plain_numbers(left.xaxis)
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.invert_yaxis()
    left.set_title("all, log scale", fontsize=9)
    left.legend(frameon=False, fontsize=8, loc="lower right")
    right.set_title(f"those below {CLOSE:g}, 95% intervals", fontsize=9)
    if seen:
        room = 0.05 * (max(seen) - min(seen)) or 0.01
        right.locator_params(axis="x", nbins=4)
        right.set_xlim(min(seen) - room, max(seen) + room)
    return Figure(figure, description)
