"""SmoothQuant's dial on a real layer: what α does to both sides, and to the error of the layer's output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from labkit import figures
from labkit.explorers.explorer import Choice, Explorer, Slider

if TYPE_CHECKING:
    from torch import Tensor

    from labkit.activations import Captured

TOKENS, OUTPUTS = 64, 128  # of the layer, for the error: enough to see it move, few enough to follow a slider
SHARED = ("tensor", "channel", "token")


def smoothing(captured: Captured, weight: Tensor, outliers: Sequence[int], alpha: float) -> Explorer:
    """The channels of a layer's input and of its weight, before and after smoothing, and the error in INT8.

    captured: the layer's inputs. weight: [out, in]. outliers: channels to mark. alpha: where the slider stands at
    first. The second control says which numbers of the input share an INT8 scale; the weight has one a row.
    """
    from labkit import numerics

    W = weight.detach().float().cpu()  # [out, in]
    X, part = captured.sample[:TOKENS], W[:OUTPUTS]  # [tokens, in], [outputs, in]
    Y, columns = X @ part.T, numerics.channel_absmax(W)

    def error(x: Tensor, w: Tensor, share: str) -> float:
        if share == "channel":
            x_hat = numerics.round_to_nearest(x.T.contiguous(), numerics.INT8, "per-channel").T
        else:
            x_hat = numerics.round_to_nearest(x, numerics.INT8, "per-tensor" if share == "tensor" else "per-token")
        return numerics.relative_error(Y, x_hat @ numerics.round_to_nearest(w, numerics.INT8, "per-channel").T)

    plain = {share: error(X, part, share) for share in SHARED}

    def draw(alpha: float, share: str) -> figures.Figure:
        s = numerics.smoothing_scales(captured.absmax, columns, alpha)  # [in]
        after = error(X / s, part * s, share)
        return figures.smoothed_channels(
            (captured.absmax, captured.absmax / s),
            (columns, columns * s),
            outliers,
            (plain[share], after),
            f"{captured.layer}, α = {alpha:.2f}, one INT8 scale of the input for each {share}: the largest channel of "
            f"the input is {_peak(captured.absmax):,.0f} times the median one before smoothing and "
            f"{_peak(captured.absmax / s):,.1f} times after; of the weight {_peak(columns):,.1f} and "
            f"{_peak(columns * s):,.1f} times. The output's error goes from {plain[share]:.4f} to {after:.4f}.",
        )

    controls: dict[str, Slider | Choice] = {
        "alpha": Slider("α", 0, 1, 0.05, alpha),
        "share": Choice("one scale for each", SHARED, "token"),
    }
    return Explorer(controls, draw)


def _peak(maxima: Tensor) -> float:
    return float(maxima.max() / maxima.median().clamp(min=1e-12))
