"""FP8 codes by one conversion: what compressed-tensors rounds to FP8 it casts back, and then to FP8 once more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def in_one_conversion(theirs: Any) -> Any:
    """`_quantize` of compressed-tensors with two copies of the weight and two conversions less, and the same codes.

    Casting an FP8 value to a wider type and back changes nothing but perhaps the sign of a NaN; and the quotient is
    nobody else's, so it can be clamped where it is.
    """
    import torch

    @torch.no_grad()
    def quantize(
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor | None,
        q_min: Tensor,
        q_max: Tensor,
        args: Any,
        dtype: torch.dtype | None = None,
        global_scale: Tensor | None = None,
    ) -> Tensor:
        """x: a weight; scale, zero_point, global_scale: broadcast to it; returns its codes of `dtype`, shaped as x."""
        plain = x.device.type == "cpu" and zero_point is None and global_scale is None
        if not (plain and args.type == "float" and args.num_bits == 8 and dtype == torch.float8_e4m3fn):
            found: Tensor = theirs(x, scale, zero_point, q_min, q_max, args, dtype, global_scale)
            return found
        return (x / scale).clamp_(q_min, q_max).to(dtype)

    return quantize
