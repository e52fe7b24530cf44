"""The labs' figures: each comes with one line that says what to see, for those who can't see it.

White background, the Okabe-Ito palette (readable with any colour vision), units on every axis, the baseline as a line.
Functions draw what they are given and compute nothing that a reader might want to check: figures hold no results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

    from labkit.compare import Recovery

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
GREY = "#555555"


@dataclass(frozen=True)
class Figure:
    """A drawn figure and the sentence that stands under it."""

    drawing: MatplotlibFigure
    description: str


def _axes(
    rows: int = 1, columns: int = 1, *, width: float = 8.0, height: float = 3.2, **options: Any
) -> tuple[Any, Any]:
    """New axes outside pyplot's registry, so that nothing is drawn twice and nothing has to be closed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure(figsize=(8.0, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, **options)
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#E5E5E5", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def number_lines(grids: Mapping[str, Any], description: str) -> Figure:
    """One row of ticks a format: `grids` maps a name to its values [n], drawn so that the largest is 1."""
    figure, axes = _axes(len(grids), 1, height=0.75 * len(grids) + 0.7, sharex=True, squeeze=False)
    for ax, (name, values), color in zip(axes[:, 0], grids.items(), PALETTE, strict=False):
        scaled = [float(v) for v in values / values.abs().max()]
        ax.vlines(scaled, 0, 1, color=color, linewidth=0.7)
        ax.set_ylabel(f"{name}\n{len(scaled)} values", rotation=0, ha="right", va="center", fontsize=9)
        ax.set_yticks([])
        ax.grid(False)
        ax.spines["left"].set_visible(False)
    axes[-1, 0].set_xlabel("value ÷ largest value of the format")
    return Figure(figure, description)


def rounding_errors(values: Any, rounded: Mapping[str, Any], description: str) -> Figure:
    """Error against value of one row. values: [n]; `rounded` maps a format's name to the values it gives back, [n]."""
    figure, axes = _axes(1, len(rounded), sharey=True, squeeze=False)
    for ax, (name, back), color in zip(axes[0], rounded.items(), PALETTE, strict=False):
        ax.scatter(values.tolist(), (back - values).tolist(), s=9, color=color, alpha=0.75, linewidths=0)
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("weight")
    axes[0, 0].set_ylabel("rounded − weight")
    return Figure(figure, description)


def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float]],
    ylabel: str,
    description: str,
    *,
    stacked: bool = False,
    line: tuple[float, str] | None = None,
    log: bool = False,
) -> Figure:
    """Bars side by side or stacked: for each group of `groups` one value of each series; `line` is a labelled level."""
    figure, ax = _axes()
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
    if log:
        ax.set_yscale("log")
    ax.set_xticks(range(len(groups)), groups, fontsize=9, rotation=20 if sum(map(len, groups)) > 80 else 0)
    ax.set_ylabel(ylabel)
    if len(series) > 1 or line:
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return Figure(figure, description)


def channel_maxima(maxima: Mapping[str, Any], marked: Sequence[int], description: str) -> Figure:
    """The largest magnitude of each channel, log scale. `maxima`: name to [channels]; `marked` channels stand out."""
    figure, axes = _axes(1, len(maxima), sharey=True, squeeze=False)
    for ax, (name, values) in zip(axes[0], maxima.items(), strict=True):
        channels = range(len(values))
        ax.vlines(channels, min(v for v in values.tolist() if v > 0) * 0.8, values.tolist(), color=SKY, linewidth=1.0)
        for channel in marked:
            ax.plot(channel, float(values[channel]), "o", color=RED, markersize=4)
        ax.set_yscale("log")
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("channel")
    axes[0, 0].set_ylabel("largest |value|")
    return Figure(figure, description)


def curve(
    x: Sequence[float],
    series: Mapping[str, Sequence[float]],
    labels: tuple[str, str],
    description: str,
    *,
    baseline: tuple[float, str] | None = None,
    log: bool = False,
) -> Figure:
    """Lines over `x`; `labels` are the axes' (x, y); `baseline` is a labelled level."""
    figure, ax = _axes()
    for (name, values), color in zip(series.items(), PALETTE, strict=False):
        ax.plot(x, values, "o-", color=color, markersize=4, label=name)
    if baseline:
        ax.axhline(baseline[0], color=GREY, linewidth=1.2, linestyle="--", label=baseline[1])
    if log:
        ax.set_yscale("log")
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
    figure, ax = _axes(height=0.5 * len(rows) + 1.3)
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


def recoveries(found: Mapping[str, Recovery], baseline: str, margin: float) -> Figure:
    """Recovery of each variant with its paired interval, against 1 and the margin."""
    rows = {name: (r.ratio, r.ci_low, r.ci_high) for name, r in found.items()}
    verdicts = "; ".join(
        f"{name}: {r.ratio:.3f} ({r.ci_low:.3f} to {r.ci_high:.3f}), {r.verdict}" for name, r in found.items()
    )
    return intervals(
        rows,
        f"recovery: accuracy ÷ accuracy of {baseline}",
        f"Recovery against {baseline} with its paired 95% interval. {verdicts}.",
        baseline=(1.0, baseline),
        threshold=(1 - margin, f"{1 - margin:.0%}: recovered above, lost below"),
    )


def scoreboard(rows: Mapping[str, tuple[float, float, float]], description: str) -> Figure:
    """Accuracy with its standard error beside megabytes: `rows` maps a variant to (accuracy, stderr, bytes)."""
    figure, (left, right) = _axes(1, 2, height=0.55 * len(rows) + 1.1, sharey=True)
    places = range(len(rows))
    baseline = next(iter(rows.values()))
    for place, (accuracy, stderr, size) in zip(places, rows.values(), strict=True):
        color = GREY if place == 0 else RED if accuracy < baseline[0] - 0.05 else BLUE
        left.barh(place, accuracy, 0.6, color=color, xerr=stderr, error_kw={"elinewidth": 1.2})
        fits = accuracy > 0.4 * max(value for value, _, _ in rows.values())  # else the label stands beside its bar
        label = {"va": "center", "fontsize": 9, "color": "white" if fits else "black"}
        left.annotate(f"{accuracy:.3f} ± {stderr:.3f}", (0.02 if fits else accuracy + stderr + 0.03, place), **label)
        right.barh(place, size / 1e6, 0.6, color=color)
        right.annotate(f"{size / 1e6:.1f} MB", (0.2, place), va="center", fontsize=9, color="white")
    left.axvline(baseline[0], color=GREY, linewidth=1, linestyle="--")
    left.set_yticks(list(places), list(rows))
    left.invert_yaxis()
    left.set_xlabel("accuracy (exact match)")
    right.set_xlabel("weights on disk, MB")
    return Figure(figure, description)
