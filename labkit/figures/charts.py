"""General charts: bars, curves, intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labkit.figures.drawing import BLUE, GREY, PALETTE, RED, Figure, new_axes, plain_numbers

MOST_TICKS = 8  # values of x that fit under a curve


def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    ylabel: str,
    description: str,
    *,
    stacked: bool = False,
    line: tuple[float, str] | None = None,
) -> Figure:
    """Bars side by side or stacked: for each group of `groups` one value of each series; `line` is a labelled level."""
    figure, ax = new_axes()
    below = [0.0] * len(groups)
    width = 0.8 if stacked else 0.8 / len(series)
    for i, ((name, values), color) in enumerate(zip(series.items(), PALETTE, strict=False)):
        shift = 0.0 if stacked else (i - (len(series) - 1) / 2) * width
        places = [g + shift for g in range(len(groups))]
        ax.bar(places, values, width * 0.94, bottom=below if stacked else None, color=color, label=name)
        if stacked:
            below = [b + v for b, v in zip(below, values, strict=True)]
    if line:
        ax.axhline(line[0], color=RED, linewidth=1.2, linestyle="--", label=line[1])
    ax.set_xticks(range(len(groups)), groups, fontsize=9)
    ax.set_ylabel(ylabel)
    if len(series) > 1 or line:
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return Figure(figure, description)


def curve(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    labels: tuple[str, str],
    description: str,
    *,
    baseline: tuple[float, str] | None = None,
    log: bool = False,
    log_x: bool = False,
) -> Figure:
    """Lines over `x`, whose values are the ticks if they are few.

    labels: of the axes, (x, y). baseline: a level and its label. log, log_x: of which axis the scale is logarithmic.
    """
    figure, ax = new_axes()
    for (name, values), color in zip(series.items(), PALETTE, strict=False):
        ax.plot(x, values, "o-", color=color, markersize=4, label=name)
    if baseline:
        ax.axhline(baseline[0], color=GREY, linewidth=1.2, linestyle="--", label=baseline[1])
    if log:
        ax.set_yscale("log")
        plain_numbers(ax.yaxis)
    if log_x:
        ax.set_xscale("log")
    if len(x) <= MOST_TICKS:
        ax.set_xticks(x, [f"{value:g}" for value in x])
        ax.set_xticks([], minor=True)
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    ax.legend(frameon=False, fontsize=8)
    return Figure(figure, description)


def intervals(
    rows: Mapping[str, tuple[float, float, float]],
    xlabel: str,
    description: str,
    *,
    baseline: tuple[float, str],
    threshold: tuple[float, str] | None = None,
) -> Figure:
    """Points with intervals, one a row: `rows` maps a name to (value, low, high), all in the unit of `xlabel`."""
    figure, ax = new_axes(height=0.5 * len(rows) + 1.3)
    for place, (value, low, high) in enumerate(rows.values()):
        ax.plot([low, high], [place, place], color=BLUE, linewidth=2)
        ax.plot(value, place, "o", color=BLUE, markersize=6)
        ax.annotate(f"{value:.3f}", (value, place), textcoords="offset points", xytext=(0, 8), ha="center", fontsize=8)
    ax.axvline(baseline[0], color=GREY, linewidth=1.2, label=baseline[1])
    if threshold:
        ax.axvline(threshold[0], color=RED, linewidth=1.2, linestyle="--", label=threshold[1])
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.3, -0.8)
    ax.set_xlabel(xlabel)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return Figure(figure, description)
