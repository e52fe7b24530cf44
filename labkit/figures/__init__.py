"""The labs' figures: each comes with one line that says what to see, for those who can't see it.

White background, the Okabe-Ito palette (readable with any colour vision), units on every axis, the baseline as a line.
Functions draw what they are given and compute nothing that a reader might want to check: figures hold no results.
"""

from labkit.figures.charts import bars, curve, intervals
from labkit.figures.drawing import Figure
from labkit.figures.explored import grid_over_values, memory_bars, power_curves, smoothed_channels
from labkit.figures.formats import channel_maxima, number_lines, rounding_errors
from labkit.figures.graph import graph
from labkit.figures.results import recoveries, scoreboard, tradeoff
from labkit.figures.serving import crossover
from labkit.figures.simulated import ratios

__all__ = [
    "Figure",
    "bars",
    "channel_maxima",
    "crossover",
    "curve",
    "graph",
    "grid_over_values",
    "intervals",
    "memory_bars",
    "number_lines",
    "power_curves",
    "ratios",
    "recoveries",
    "rounding_errors",
    "scoreboard",
    "smoothed_channels",
    "tradeoff",
]
