"""A number format's grid over real weights, with the scale in your hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit import figures
from labkit.errors import UsageError
from labkit.explorers.explorer import Choice, Explorer, Slider

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("E4M3", "E5M2", "INT8", "E2M1")


def number_line(values: Tensor) -> Explorer:
    """The grids of E4M3, E5M2, INT8 and E2M1 over values that share one scale, such as a row of a weight.

    values: any shape, not all zero. The slider makes the scale 2^k times the one of round-to-nearest, at which the
    largest magnitude lands on the end of the grid. Raises UsageError for values that are all zero.
    """
    from labkit import numerics

    formats = {fmt.name: fmt for fmt in numerics.FORMATS}
    row = values.detach().float().flatten().cpu()  # [n]
    if not row.any():
        raise UsageError("all values are zero", why="no scale fits them", fix="take another row")

    def draw(fmt: str, scale: float) -> figures.Figure:
        chosen = formats[fmt]
        s = numerics.scale_for(row, chosen, "per-tensor") * scale  # [1]
        back = numerics.quantize_dequantize(row, s, chosen)
        clipped = float(((row / s > chosen.max_value) | (row / s < chosen.min_value)).float().mean())
        lost = float(((back == 0) & (row != 0)).float().mean())
        error = numerics.relative_error(row, back)
        return figures.grid_over_values(
            row,
            chosen.values() * s,
            fmt,
            f"{fmt} with a scale of {scale:.3g} times the usual one: {len(back.unique())} of its "
            f"{len(chosen.values())} values are used, {clipped:.1%} of the weights are clipped, {lost:.1%} become "
            f"zero; relative error {error:.4f}.",
        )

    controls: dict[str, Slider | Choice] = {
        "fmt": Choice("format", FORMATS, "E4M3"),
        "scale": Slider("scale ÷ usual scale", -6, 6, 0.25, 0, power=True),
    }
    return Explorer(controls, draw)
