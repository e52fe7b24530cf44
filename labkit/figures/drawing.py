"""What every figure starts from: its axes, its colours, and the sentence under it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
GREY = "#555555"


@dataclass(frozen=True)
class Figure:
    """A drawn figure and the sentence that stands under it."""

    drawing: MatplotlibFigure
    description: str


def new_axes(
    rows: int = 1,
    columns: int = 1,
    *,
    height: float = 3.2,
    margins: Mapping[str, float] | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """New axes outside pyplot's registry, so that nothing is drawn twice and nothing has to be closed.

    margins: where the axes end, as shares of the figure, in place of margins found to fit, which takes time.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    figure = MatplotlibFigure(figsize=(8.0, height), layout=None if margins else "constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, **options)
    if margins:
        figure.subplots_adjust(**margins)
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#E5E5E5", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def plain_numbers(axis: Any) -> None:
    """Labels a log axis with plain numbers, 0.5 or 20, in place of powers of ten, and no more of them than fit.

    Minor ticks are only those that have a label: each costs a millisecond, and a slider may be moving.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    labels = FuncFormatter(lambda value, _: f"{value:g}")
    labelled = range(2, 10) if high < 3 * low else (2, 5) if high < 1000 * low else ()  # first digits of minor ticks
    axis.set_major_formatter(labels)
    axis.set_minor_locator(LogLocator(subs=labelled) if labelled else NullLocator())
    axis.set_minor_formatter(labels)
