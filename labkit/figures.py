"""The labs' figures: each comes with one sentence that says what to see, for those who can't see it.

White background, the Okabe-Ito palette (readable with any colour vision), units on every axis, the baseline as a line.
Functions draw what they are given and compute nothing that a reader might want to check: figures hold no results.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
GREY = "#555555"
DASHED: dict[str, Any] = {"linewidth": 1.2, "linestyle": "--"}
Level = tuple[float, str]  # where a line lies, and its label
Interval = tuple[float, float, float]  # a value, and the low and the high end of its interval
MOST_TICKS = 8  # values of x that fit under a curve
WIDTH, HEIGHT = 0.8, 0.62  # of a task's box in a graph, where columns and rows are 1 apart


@dataclass(frozen=True)
class Figure:
    """A drawn figure and the sentence that stands under it."""

    drawing: MatplotlibFigure
    description: str

    def png(self, dpi: int = 110) -> bytes:
        out = io.BytesIO()
        self.drawing.savefig(out, format="png", dpi=dpi)
        return out.getvalue()


def new_axes(rows: int = 1, columns: int = 1, *, height: float = 3.2, **options: Any) -> tuple[Any, Any]:
    """New axes outside pyplot's registry, so that nothing is drawn twice and nothing has to be closed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure(figsize=(8.0, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, **options)
    for ax in figure.axes:
        ax.set_prop_cycle(color=PALETTE)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#E5E5E5", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def legend(ax: Any, outside: bool = False, **options: Any) -> None:
    """A legend without a frame, where it covers least or at the right of the axes; nothing in it is pale."""
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if outside else {}
    for handle in ax.legend(frameon=False, fontsize=8, **beside, **options).legend_handles:
        handle.set_alpha(1.0)


def plain_numbers(axis: Any) -> None:
    """Labels a log axis with plain numbers, 0.5 or 20, in place of powers of ten, and no more of them than fit."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    labels = FuncFormatter(lambda value, _: f"{value:g}")
    labelled = range(2, 10) if high < 3 * low else (2, 5) if high < 1000 * low else ()  # first digits of minor ticks
    axis.set_major_formatter(labels)
    axis.set_minor_locator(LogLocator(subs=labelled) if labelled else NullLocator())
    axis.set_minor_formatter(labels)


def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    ylabel: str,
    description: str,
    *,
    stacked: bool = False,
    line: Level | None = None,
    chosen: str = "",
) -> Figure:
    """Bars side by side or stacked, of each series one in each group; groups other than `chosen` are pale."""
    figure, ax = new_axes()
    below = [0.0] * len(groups)
    width = 0.8 if stacked else 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        shift = 0.0 if stacked else (i - (len(series) - 1) / 2) * width
        drawn = ax.bar([group + shift for group in range(len(groups))], values, width * 0.94, below, label=name)
        for group, bar in zip(groups, drawn, strict=True):
            bar.set_alpha(1.0 if chosen in ("", group) else 0.35)
        if stacked:
            below = [b + v for b, v in zip(below, values, strict=True)]
    if line:
        ax.axhline(line[0], color=RED, label=line[1], **DASHED)
    ax.set_xticks(range(len(groups)), groups, fontsize=9)
    ax.set_ylabel(ylabel)
    if len(series) > 1 or line:
        legend(ax, outside=True)
    return Figure(figure, description)


def curve(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    labels: tuple[str, str],
    description: str,
    *,
    baseline: Level | None = None,
    mark: Level | None = None,
    log: bool = False,
    log_x: bool = False,
) -> Figure:
    """Lines over `x`, whose values are the ticks if they are few.

    labels: of the axes, (x, y). mark: a line at an x. log, log_x: of which axis the scale is logarithmic.
    """
    figure, ax = new_axes()
    for name, values in series.items():
        ax.plot(x, values, "o-", markersize=4, label=name)
    if baseline:
        ax.axhline(baseline[0], color=GREY, label=baseline[1], **DASHED)
    if mark:
        ax.axvline(mark[0], color=RED, label=mark[1], **DASHED)
    if log:
        ax.set_yscale("log")
        plain_numbers(ax.yaxis)
    if log_x:
        ax.set_xscale("log")
        plain_numbers(ax.xaxis)
    if len(x) <= MOST_TICKS:
        ax.set_xticks(x, [f"{value:g}" for value in x])
        ax.set_xticks([], minor=True)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    legend(ax)
    return Figure(figure, description)


def intervals(
    series: Mapping[str, Mapping[str, Interval]],
    xlabel: str,
    description: str,
    *,
    baseline: Level,
    threshold: Level | None = None,
    most: float = math.inf,
) -> Figure:
    """Points with intervals, a row for each of the names, which all series share; its values stand beside its name.

    A value above `most` stands only there: on the axis it would push the others together.
    """
    names = list(next(iter(series.values())))
    figure, ax = new_axes(height=(0.34 + 0.08 * len(series)) * len(names) + 1.3)
    for number, ((label, rows), color) in enumerate(zip(series.items(), PALETTE, strict=False)):
        places = [place + (number - (len(series) - 1) / 2) * 0.3 for place in range(len(names))]
        values, lows, highs = zip(*(row if row[0] <= most else [math.nan] * 3 for row in rows.values()), strict=True)
        ax.hlines(places, lows, highs, color=color, linewidth=2)
        ax.plot(values, places, "o", color=color, markersize=6, label=label)
    ax.axvline(baseline[0], color=GREY, linewidth=1.2, label=baseline[1])
    if threshold:
        ax.axvline(threshold[0], color=RED, label=threshold[1], **DASHED)
    told = {name: ", ".join(f"{rows[name][0]:.3f}" for rows in series.values()) for name in names}
    ax.set_yticks(range(len(names)), [f"{name}\n{values}" for name, values in told.items()], fontsize=9)
    ax.set(xlabel=xlabel, ylim=(len(names) - 0.3, -0.8))
    legend(ax, outside=True)
    return Figure(figure, description)


def recoveries(found: Mapping[str, Any], baseline: str, margin: float) -> Figure:
    """Recovery of each variant (`labkit.compare.Recovery`) with its paired interval, against 1 and the margin."""
    rows = {name: (r.ratio, r.ci_low, r.ci_high) for name, r in found.items()}
    told = (f"{name}: {r.ratio:.3f} ({r.ci_low:.3f} to {r.ci_high:.3f}), {r.verdict}" for name, r in found.items())
    said = f"Recovery against {baseline} with its paired 95% interval. {'; '.join(told)}."
    threshold = (1 - margin, f"{1 - margin:.0%}: recovered above, lost below")
    xlabel = f"recovery: accuracy ÷ accuracy of {baseline}"
    return intervals({"95% interval": rows}, xlabel, said, baseline=(1.0, baseline), threshold=threshold)


def tradeoff(
    points: Mapping[str, tuple[float, float, float, float | None]], baseline: float | None, description: str
) -> Figure:
    """Accuracy against size: `points` maps a variant to (bits per weight, accuracy, half interval, speed-up or None).

    A filled point has a speed-up, which stands beside it; an empty one was not measured. baseline: its accuracy.
    """
    figure, ax = new_axes(height=3.8)
    if baseline is not None:
        ax.axhline(baseline, color=GREY, label="baseline", **DASHED)
        legend(ax, loc="center right")
    named: list[tuple[float, float]] = []
    for name, (bits, accuracy, half, speedup) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        fill = {} if speedup else {"markerfacecolor": "white"}
        ax.errorbar(bits, accuracy, half, fmt="o", markersize=8, elinewidth=1.2, capsize=3, **fill)
        label = f"{name}, {speedup:.2f}×" if speedup else name
        near = sum(abs(bits - b) < 2.0 and abs(accuracy - a) < 0.08 for b, a in named)
        place = (12, -11 - 13 * near)  # names of points that lie together stand under each other
        ax.annotate(label, (bits, accuracy), xytext=place, textcoords="offset points", fontsize=8, va="center")
        named.append((bits, accuracy))
    ax.margins(x=0.25, y=0.12)
    ax.set(xlabel="bits per weight, all of the checkpoint counted", ylabel="accuracy")
    return Figure(figure, description)


def crossover(
    concurrencies: Sequence[int],
    speedups: Mapping[str, Sequence[Any]],
    points: Mapping[str, Sequence[tuple[float, float]]],
    baseline: str,
    description: str,
) -> Figure:
    """Which variant pays at which load.

    Left, over the number of requests at once: `speedups` gives a variant's ratio to the baseline at each of
    `concurrencies` (with `median`, `low` and `high`), the baseline being 1. Right, latency against throughput:
    `points` gives a variant's (ms between two tokens, output tokens a second) at each of them, joined by a line.
    """
    figure, (left, right) = new_axes(1, 2, height=3.4)
    colors = dict(zip([baseline, *(name for name in points if name != baseline)], PALETTE, strict=False))
    left.axhline(1.0, color=GREY, label=baseline, **DASHED)
    for name, values in speedups.items():
        middle = [each.median for each in values]
        spread = [[each.median - each.low for each in values], [each.high - each.median for each in values]]
        left.errorbar(concurrencies, middle, spread, fmt="o-", markersize=4, capsize=3, color=colors[name], label=name)
    left.set_xscale("log", base=2)
    left.set_xticks(concurrencies, [str(c) for c in concurrencies])
    left.set(xlabel="requests at once", ylabel=f"output tok/s ÷ those of {baseline}")
    left.set_ylim(bottom=0)
    legend(left)
    for name, pairs in points.items():
        right.plot([ms for ms, _ in pairs], [rate for _, rate in pairs], "o-", color=colors[name], markersize=4)
        for count, pair in zip(concurrencies, pairs, strict=True):
            right.annotate(str(count), pair, textcoords="offset points", xytext=(4, -9), fontsize=8, color=GREY)
    right.set(xlabel="median ms between two tokens", ylabel="output tok/s, all requests")
    right.set_xlim(left=0)
    right.set_ylim(bottom=0)
    return Figure(figure, description)


def number_lines(grids: Mapping[str, Any], description: str) -> Figure:
    """One row of ticks a format: `grids` maps a name to its values [n], drawn so that the largest is 1."""
    figure, axes = new_axes(len(grids), 1, height=0.75 * len(grids) + 0.7, sharex=True, squeeze=False)
    for ax, (name, values) in zip(axes[:, 0], grids.items(), strict=True):
        ticks(ax, (values / values.abs().max()).tolist(), f"{name}\n{len(values)} values")
    axes[-1, 0].set_xlabel("value ÷ largest value of the format")
    return Figure(figure, description)


def ticks(ax: Any, values: Sequence[float], label: str) -> None:
    """Values as vertical ticks on axes that have nothing else, with a label at their left."""
    ax.vlines(values, 0, 1, color=BLUE, linewidth=0.7)
    ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    ax.set_yticks([])
    ax.grid(False)
    ax.spines["left"].set_visible(False)


def grid_over_values(values: Any, grid: Any, name: str, description: str) -> Figure:
    """A histogram of values [n], and under it the points of a grid [m] on the same axis; both in the values' unit."""
    figure, (top, bottom) = new_axes(2, 1, height=2.6, sharex=True, height_ratios=[3, 1])
    reach = float(values.abs().max()) * 1.25
    top.hist(values.tolist(), 60, (-reach, reach), color=SKY)
    top.set_ylabel("weights")
    ticks(bottom, [point for point in grid.tolist() if abs(point) <= reach], name)
    bottom.set_xlim(-reach, reach)
    ends = [end for end in (float(grid.min()), float(grid.max())) if abs(end) < reach]
    for ax, end in itertools.product((top, bottom), ends):
        ax.axvline(end, color=RED, **DASHED)
    bottom.set_xlabel("value; dashed: the grid's ends" if ends else "value")
    return Figure(figure, description)


def rounding_errors(values: Any, rounded: Mapping[str, Any], description: str) -> Figure:
    """Error against value of one row. values: [n]; `rounded` maps a format's name to the values it gives back, [n]."""
    figure, axes = new_axes(1, len(rounded), sharey=True, squeeze=False)
    for ax, (name, back) in zip(axes[0], rounded.items(), strict=True):
        ax.scatter(values.tolist(), (back - values).tolist(), s=9, color=BLUE, alpha=0.75, linewidths=0)
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("weight")
    axes[0, 0].set_ylabel("rounded − weight")
    return Figure(figure, description)


def channel_maxima(
    panels: Mapping[str, Mapping[str, Any]],
    marked: Sequence[int],
    description: str,
    errors: Mapping[str, float] | None = None,
) -> Figure:
    """The largest magnitude of each channel, log scale; `marked` channels have a red rim.

    panels: a title to the maxima of its panel by name, [channels] each. errors: of the output, as bars beside them.
    """
    widths = [3.0] * len(panels) + ([1.4] if errors else [])
    figure, axes = new_axes(1, len(widths), height=2.8, squeeze=False, width_ratios=widths)
    for ax, (title, maxima) in zip(axes[0], panels.items(), strict=False):
        for (name, values), color in zip(maxima.items(), (GREY, BLUE)[-len(maxima) :], strict=True):
            ax.plot(values.tolist(), ".", markersize=3, color=color, label=name)
            ax.plot(marked, values[list(marked)].tolist(), "o", markersize=7, color=color, markeredgecolor=RED)
        ax.set_yscale("log")
        plain_numbers(ax.yaxis)
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("channel")
    axes[0, 0].set_ylabel("largest |value|")
    legend(axes[0, 0])
    if errors:
        axes[0, -1].bar(list(errors), list(errors.values()), color=(GREY, BLUE))
        axes[0, -1].set_title("output's error", fontsize=9)
    return Figure(figure, description)


def graph(after: Mapping[str, Sequence[str]], fanned: Sequence[str], items: Sequence[str], description: str) -> Figure:
    """A pipeline: tasks by name with those they wait for, in an order in which they can run, from left to right.

    fanned: the tasks that run once for each of `items`; each of them is drawn that often, in a row for each item.
    """
    from matplotlib.patches import FancyBboxPatch

    column: dict[str, int] = {}
    for name, waits_for in after.items():
        column[name] = max((column[other] + 1 for other in waits_for), default=0)
    middle = [(len(items) - 1) / 2]
    rows = {name: [float(row) for row in range(len(items))] if name in fanned else middle for name in after}
    figure, ax = new_axes(height=0.9 + 0.62 * len(items))
    ax.axis("off")
    arrow = {"arrowstyle": "-|>", "color": GREY, "linewidth": 1.0, "shrinkA": 0, "shrinkB": 0}
    box: Any = {"boxstyle": "round,pad=0,rounding_size=0.08", "facecolor": "white"}
    for name, waits_for in after.items():
        left, color = column[name] - WIDTH / 2, BLUE if name in fanned else ORANGE
        for other in waits_for:
            each = name in fanned and other in fanned  # then each item has an arrow of its own
            for start, end in itertools.product(rows[other], rows[name]):
                if start == end or not each:
                    ax.annotate("", (left, end), (column[other] + WIDTH / 2, start), arrowprops=arrow)
        for row in rows[name]:
            ax.add_patch(FancyBboxPatch((left, row - HEIGHT / 2), WIDTH, HEIGHT, edgecolor=color, **box))
            text = f"{name}\n{items[int(row)]}" if name in fanned else name
            ax.text(column[name], row, text, ha="center", va="center", fontsize=8)
    ax.set(xlim=(-0.5, max(column.values()) + 0.5), ylim=(len(items) - 0.4, -0.6))
    return Figure(figure, description)
