"""A linear layer that computes as a scheme would have it, in the model's own dtype.

Most hardware has no kernel for FP4 weights with FP8 activations, and no checkpoint format says all that a paper tries.
So numbers are rounded where hardware would round them, and multiplied as they are: weights once, when a scheme is
applied; activations at each call, with one scale for each token. What such a model answers is what the scheme would
answer. How fast it answers says nothing: it still multiplies 16-bit numbers, and rounds on top.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labkit.numerics import Format, LowRank, dequantize, scale_for


class SimulatedLinear(nn.Module):
    """y = round(x) · (Ŵ + Û V̂)ᵀ + b, for x [..., columns] and y [..., rows].

    weight: Ŵ [rows, columns], dequantized, or W as long as nothing was rounded. activations: what each token of x is
    rounded to, None for nothing. correction: Û and V̂, kept as two thin matrices, None for none.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.activations: Format | None = None
        self.correction: LowRank | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.activations is not None:
            x = round_each_token(x, self.activations)
        y = nn.functional.linear(x, self.weight, self.bias)
        if self.correction is None:
            return y
        thin = nn.functional.linear(x, self.correction.V)  # [..., m]
        return y + nn.functional.linear(thin, self.correction.U)


def round_each_token(x: Tensor, fmt: Format) -> Tensor:
    """x̂ [..., columns], each token with a scale of its own: `round_to_nearest(x, fmt, "per-token")`, bit for bit.

    That one shows how a grid rounds; this one lets torch's cast do it, in a third of the time. Only for formats that
    torch has (`fmt.dtype`); same errors as `scale_for`.
    """
    scale = scale_for(x, fmt, "per-token")  # [..., 1]
    q = (x / scale).clamp(fmt.min_value, fmt.max_value)
    return dequantize((q if fmt.exponent_bits else torch.round(q)).to(fmt.dtype), scale)
