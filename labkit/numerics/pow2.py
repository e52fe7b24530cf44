"""Scales that are powers of two: M1 and M2, and why hardware wants them.

Hardware for FP8 multiplies FP8 by FP8. FP4 weights must be cast to FP8 before: each is multiplied with its group's
scale. By a scale of 2^n that is an addition of n to the exponent's bits, and exact; any other scale wants a multiplier
and rounds once more. So the scales are constrained:

    M1:   Ŝ_i = 2^⌈log2 S_i⌉                          each by itself
    M2:   Ŝ_i = S_max / 2^⌈log2(S_max / S_i)⌉         within a block of rows; S_max stays as it is

With M2 one real number is left for a block of rows and each group of columns, applied to the sum over that group; the
casts see only powers of two. M1's exponents follow the weights' absolute size, M2's only how rows differ.

What is S? A scale can be what a code is multiplied with, or its inverse, what a weight is multiplied with before it is
rounded. ⌈ ⌉ makes S larger in M1 and, but for the largest, smaller in M2. So each reading makes one of the two clip the
largest weights of most groups: the first M2, the second M1. The paper's formula does not say which, so `reading` is a
parameter, as is the rounding of the exponent.

Weights must be quantized again with the new scales, and clamped: codes of the old scales mean other numbers now.

Source: Wu et al., "ZeroQuant-FP", arXiv 2307.09782.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from labkit.errors import DataError, UsageError
from labkit.numerics.formats import E4M3

ExponentRounding = Literal["ceil", "nearest"]
Reading = Literal["S", "1/S"]


def m1(scales: Tensor, rounding: ExponentRounding = "ceil", reading: Reading = "S") -> Tensor:
    """Each scale as a power of two; same shape and dtype.

    scales: what codes are multiplied with. rounding: "nearest" rounds the exponent instead of raising it. reading: what
    the formula's S is, the scale or its inverse; see above.
    Errors: UsageError for an unknown name, DataError for a scale that is not positive and finite.
    """
    _require(scales, reading)
    one = torch.ones_like(scales)
    if reading == "S":
        return _times_power(one, _log2_ratio(scales, one, rounding))
    return _times_power(one, -_log2_ratio(one, scales, rounding))


def m2(scales: Tensor, rows: int, rounding: ExponentRounding = "ceil", reading: Reading = "1/S") -> Tensor:
    """Each scale as a real one of its block times a power of two; same shape and dtype.

    scales: [all rows, groups] (one group for scales of whole rows), what codes are multiplied with. Where weights are
    all zero it is the dtype's epsilon (`scale_for`), which is never taken for the real one of its block. rows: how many
    rows make a block; in each group of columns they share the real scale. reading: what the formula's S is, the scale
    or its inverse; see above.
    Errors: UsageError if blocks don't divide the rows, DataError for a scale that is not positive and finite.
    """
    _require(scales, reading)
    if scales.ndim != 2 or rows < 1 or scales.shape[0] % rows:
        raise UsageError(
            f"Blocks of {rows} rows don't divide scales of shape {list(scales.shape)}.",
            "A block shares one real scale, so a row can't stand in none.",
            f"Use a divisor of {scales.shape[0]}.",
        )
    blocks = scales.reshape(-1, rows, scales.shape[1])  # [blocks, rows, groups]
    dead = blocks == torch.finfo(scales.dtype).eps
    dead &= ~dead.all(dim=1, keepdim=True)
    if reading == "S":
        S_max = blocks.masked_fill(dead, 0).amax(dim=1, keepdim=True)  # [blocks, 1, groups]
        return _times_power(S_max, -_log2_ratio(S_max, blocks, rounding)).reshape(scales.shape)
    S_min = blocks.masked_fill(dead, torch.inf).amin(dim=1, keepdim=True)  # the largest 1/S
    return _times_power(S_min, _log2_ratio(blocks, S_min, rounding)).reshape(scales.shape)


@dataclass(frozen=True)
class Cast:
    """What `cast_to_fp8` gives. codes: float8 E4M3. exceptions: boolean, where the addition could not be used."""

    codes: Tensor
    exceptions: Tensor


def cast_to_fp8(q: Tensor, exponents: Tensor) -> Cast:
    """q · 2^n in E4M3 by adding n to the exponent's bits of q in E4M3; zero stays zero.

    q: E2M1 grid points, any shape; exponents: n, int32, broadcast against q. E4M3 keeps a sign, four bits of exponent
    and three of mantissa, so n is added at bit 3. The sum means q · 2^n as long as it stays a normal number: below, the
    leading one would have to be shifted in, above there is nothing but saturation. These exceptions are multiplied.
    """
    bits = q.to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int32)  # every E2M1 number is a normal one of E4M3
    zero = q == 0
    exponent = (bits >> E4M3.mantissa_bits & 0xF) + exponents  # with its bias; 1 to 15 are normal numbers
    added = torch.where(zero, bits, bits + (exponents << E4M3.mantissa_bits))
    exceptions = ~zero & ((exponent < 1) | (exponent > 0xF))  # E2M1's mantissas never reach E4M3's NaN
    multiplied = _times_power(q.float(), exponents).clamp(E4M3.min_value, E4M3.max_value).to(torch.float8_e4m3fn)
    codes = torch.where(exceptions, multiplied.view(torch.uint8), added.to(torch.uint8))
    return Cast(codes.view(torch.float8_e4m3fn), exceptions)


def _require(scales: Tensor, reading: Reading) -> None:
    if reading not in get_args(Reading):
        raise UsageError(f"There is no reading {reading!r}.", fix=f"Use one of {', '.join(get_args(Reading))}.")
    if not bool((scales.isfinite() & (scales > 0)).all()):
        raise DataError(
            f"Scales of shape {list(scales.shape)} hold a value that is zero, negative, NaN or infinite.",
            "It has no logarithm, so it has no nearest power of two.",
            "Take scales from `scale_for` or `group_scales`: they are positive wherever the weights are numbers.",
        )


def _log2_ratio(a: Tensor, b: Tensor, rounding: ExponentRounding) -> Tensor:
    """⌈log2(a / b)⌉, or log2(a / b) rounded, as integers. With a = f · 2^e, f in [0.5, 1), ⌈ ⌉ needs no division."""
    if rounding not in get_args(ExponentRounding):
        raise UsageError(f"There is no rounding {rounding!r}.", fix=f"Use {' or '.join(get_args(ExponentRounding))}.")
    (f_a, e_a), (f_b, e_b) = torch.frexp(a.float()), torch.frexp(b.float())
    if rounding == "ceil":
        return e_a - e_b + (f_a > f_b).int()  # f_a / f_b lies between 0.5 and 2
    return e_a - e_b + torch.log2(f_a / f_b).round().int()


def _times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """x · 2^exponent, in x's dtype."""
    return torch.ldexp(*torch.broadcast_tensors(x.float(), exponent)).to(x.dtype)
