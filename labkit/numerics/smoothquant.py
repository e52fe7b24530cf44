"""SmoothQuant: move the difficulty of activation outliers into the weights, where it does less harm.

In a linear layer Y = X Wᵀ a few input channels j of X carry values a hundred times larger than the others. A token has
one INT8 scale, set by its outlier channel, and nearly everything else in the token rounds to zero. The weights have no
such channels. A factor s_j for each input channel leaves the product as it was and evens the two sides out:

    Y = (X diag(s)⁻¹) · (diag(s) Wᵀ)        s_j = max|X_j|^α / max|W_j|^(1-α)

α is the dial. α = 0 evens out the weights alone and leaves the outliers where they are; α = 1 makes all activation
channels equally large and hands every outlier to the weights; at α = 0.5 both sides have the same maximum in each
channel. Recipes of published W8A8 checkpoints use 0.7 or 0.8.

It costs nothing at run time: X comes out of an RMSNorm that multiplies channel j by a weight g_j anyway, so 1/s_j is
folded into g_j. That is also its limit: only layers that read a norm can be smoothed (q, k, v and gate, up in a Llama),
and all layers that read the same norm must share one s. The function of the model is the same before and after; only
then comes the rounding, which it makes easier.

Source: Xiao et al., "SmoothQuant", arXiv 2211.10438, section 4, equation 4. llm-compressor's SmoothQuantModifier uses
the same formula with max X_j - min X_j in place of max|X_j| and 2 max|W_j| in place of max|W_j|. Where channels are
symmetric around zero the two differ by one factor for all of them, 2^(2α-1), which the scales of the rounding take up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.errors import UsageError

MINIMUM_SCALE = 1e-5
"""The floor of s_j, as in llm-compressor: a channel that was zero on all calibration data would have s_j = 0, and the
norm's weight is divided by s_j."""


@dataclass(frozen=True)
class Smoothed:
    """norm_weight: [d]; weights: one [rows, d] for each layer that reads the norm; dtypes as they came in."""

    norm_weight: Tensor
    weights: tuple[Tensor, ...]


def channel_absmax(*tensors: Tensor) -> Tensor:
    """max|·| of each input channel over all rows of all tensors.

    tensors: activations [..., d], or the weights [rows, d] of all layers that read one norm. Returns [d].
    """
    each = [tensor.abs().reshape(-1, tensor.shape[-1]).amax(dim=0) for tensor in tensors]  # one [d] for each tensor
    return torch.stack(each).amax(dim=0)  # [tensors, d] -> [d]


def smoothing_scales(x_absmax: Tensor, weight_absmax: Tensor, alpha: float) -> Tensor:
    """s_j = max|X_j|^α / max|W_j|^(1-α), at least MINIMUM_SCALE.

    x_absmax, weight_absmax: [d], from calibration activations and from all weights that read them; alpha: 0 to 1.
    Returns [d]. A channel whose weights are all zero gets s_j = max|X_j|: nothing reads it, so nothing limits s_j.
    Errors: UsageError for an alpha outside 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(
            f"alpha is {alpha}, but must lie between 0 and 1.",
            "It says which share of an outlier moves into the weights.",
            "Use 0.5 to start with, 0.7 to 0.8 for strong outliers.",
        )
    scales = x_absmax.pow(alpha) / weight_absmax.pow(1 - alpha)  # [d]
    return torch.where(weight_absmax > 0, scales, x_absmax).clamp(min=MINIMUM_SCALE)


def smooth(norm_weight: Tensor, weights: Sequence[Tensor], scales: Tensor) -> Smoothed:
    """Fold 1/s into the norm and s into every layer that reads it; what they compute together stays the same.

    norm_weight: [d], the factor g that the norm multiplies by (Gemma's norm stores g - 1: add the 1 first; a bias that
    the norm adds must be divided too); weights: [rows, d] each; scales: [d].
    """
    return Smoothed(
        norm_weight=(norm_weight / scales).to(norm_weight.dtype),  # [d] / [d]
        weights=tuple((weight * scales).to(weight.dtype) for weight in weights),  # [rows, d] · [d]: column j times s_j
    )
