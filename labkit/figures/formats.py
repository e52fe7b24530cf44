"""Pictures of number formats and of tensors: lines, rounding errors, channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from labkit.figures.drawing import GREY, PALETTE, RED, SKY, Figure, new_axes


def number_lines(grids: Mapping[str, Any], description: str) -> Figure:
    """One row of ticks a format: `grids` maps a name to its values [n], drawn so that the largest is 1."""
    figure, axes = new_axes(len(grids), 1, height=0.75 * len(grids) + 0.7, sharex=True, squeeze=False)
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
    figure, axes = new_axes(1, len(rounded), sharey=True, squeeze=False)
    for ax, (name, back), color in zip(axes[0], rounded.items(), PALETTE, strict=False):
        ax.scatter(values.tolist(), (back - values).tolist(), s=9, color=color, alpha=0.75, linewidths=0)
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("weight")
    axes[0, 0].set_ylabel("rounded − weight")
    return Figure(figure, description)


def channel_maxima(maxima: Mapping[str, Any], marked: Sequence[int], description: str) -> Figure:
    """The largest magnitude of each channel, log scale. `maxima`: name to [channels]; `marked` channels stand out."""
    figure, axes = new_axes(1, len(maxima), sharey=True, squeeze=False)
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
