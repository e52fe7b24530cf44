"""A pipeline as a picture: boxes from left to right, each after those that it waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from labkit.figures.drawing import BLUE, GREY, ORANGE, Figure, new_axes

WIDTH, HEIGHT = 0.8, 0.62  # of a box, where columns and rows are 1 apart


def graph(after: Mapping[str, Sequence[str]], fanned: Sequence[str], items: Sequence[str], description: str) -> Figure:
    """Tasks by name with those they wait for, in an order in which they can run.

    fanned: the tasks that run once for each of `items`; each of them is drawn that often, in a row for each item.
    """
    column: dict[str, int] = {}
    for name, waits_for in after.items():
        column[name] = max((column[other] + 1 for other in waits_for), default=0)
    middle = (len(items) - 1) / 2
    rows = {name: [float(row) for row in range(len(items))] if name in fanned else [middle] for name in after}
    figure, ax = new_axes(height=0.9 + 0.62 * len(items))
    ax.axis("off")
    for name, waits_for in after.items():
        for other in waits_for:
            both = name in fanned and other in fanned  # then each item has an arrow of its own
            pairs = (
                zip(rows[other], rows[name], strict=True) if both else ((a, b) for a in rows[other] for b in rows[name])
            )
            for start, end in pairs:
                _arrow(ax, (column[other], start), (column[name], end))
        for row in rows[name]:
            text = f"{name}\n{items[int(row)]}" if name in fanned else name
            _box(ax, column[name], row, text, BLUE if name in fanned else ORANGE)
    ax.set_xlim(-0.5, max(column.values()) + 0.5)
    ax.set_ylim(len(items) - 0.4, -0.6)
    return Figure(figure, description)


def _box(ax: Any, column: float, row: float, text: str, color: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    corner = (column - WIDTH / 2, row - HEIGHT / 2)
    ax.add_patch(
        FancyBboxPatch(
            corner, WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", facecolor="white", edgecolor=color
        )
    )
    ax.text(column, row, text, ha="center", va="center", fontsize=8)


def _arrow(ax: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    tip, tail = (end[0] - WIDTH / 2, end[1]), (start[0] + WIDTH / 2, start[1])
    ax.annotate(
        "", tip, tail, arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    )
