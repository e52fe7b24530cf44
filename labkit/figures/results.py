"""Pictures of what evaluations found."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from labkit.figures.charts import intervals
from labkit.figures.drawing import BLUE, GREY, PALETTE, RED, Figure, new_axes

if TYPE_CHECKING:
    from labkit.compare import Recovery

NEAR_BITS, NEAR_ACCURACY = 2.0, 0.08  # of two points whose names would cover each other


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
    figure, (left, right) = new_axes(1, 2, height=0.55 * len(rows) + 1.1, sharey=True)
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


def tradeoff(
    points: Mapping[str, tuple[float, float, float, float | None]], baseline: float | None, description: str
) -> Figure:
    """Accuracy against size: `points` maps a variant to (bits per weight, accuracy, half interval, speed-up or None).

    A filled point has a speed-up, which stands beside it; an empty one was not measured. baseline: its accuracy.
    """
    figure, ax = new_axes(height=3.8)
    if baseline is not None:
        ax.axhline(baseline, color=GREY, linewidth=1, linestyle="--", label="baseline")
        ax.legend(frameon=False, fontsize=8, loc="center right")
    named: list[tuple[float, float]] = []
    ordered = sorted(points.items(), key=lambda item: (item[1][0], -item[1][1]))
    for (name, (bits, accuracy, interval, speedup)), color in zip(ordered, itertools.cycle(PALETTE), strict=False):
        ax.errorbar(bits, accuracy, interval, color=color, elinewidth=1.2, capsize=3)
        ax.plot(bits, accuracy, "o", markersize=8, color=color, markerfacecolor=color if speedup else "white")
        label = f"{name}, {speedup:.2f}×" if speedup else name
        below = sum(abs(bits - b) < NEAR_BITS and abs(accuracy - a) < NEAR_ACCURACY for b, a in named)
        place = (12, -11 - 13 * below)  # names of points that lie together stand under each other
        ax.annotate(label, (bits, accuracy), xytext=place, textcoords="offset points", fontsize=8, va="center")
        named.append((bits, accuracy))
    ax.margins(x=0.25, y=0.12)
    ax.set_xlabel("bits per weight, all of the checkpoint counted")
    ax.set_ylabel("accuracy")
    return Figure(figure, description)
