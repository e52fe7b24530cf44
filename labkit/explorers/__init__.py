"""Interactive pictures: a few controls, and a figure that answers to them.

`lab.explore` shows one: with sliders where there is a front end, as the plain figure of its default state where there
is none. Each says in words what its picture shows, for every state.
"""

from labkit.explorers.explorer import Choice, Explorer, Slider
from labkit.explorers.grids import number_line
from labkit.explorers.planner import memory_planner
from labkit.explorers.samples import sample_size
from labkit.explorers.smoothing import smoothing

__all__ = ["Choice", "Explorer", "Slider", "memory_planner", "number_line", "sample_size", "smoothing"]
