"""Number formats of 8 bits and fewer, round-to-nearest (RTN), and the scales of 4-bit weights.

A format is a short list of numbers, its grid. To quantize a tensor is to divide it by a scale that fits it to the grid,
to round each value to the nearest grid point, and to keep the grid point and the scale:

    s  = max|x| / R        R: half the width of the grid (E4M3: 448, INT8: 127.5)
    q  = round(clamp(x / s))
    x̂  = q · s

The formats differ in where they put their points. INT8 has one step everywhere: one outlier, which sets the scale,
leaves few points for all others. In a floating-point format the step doubles with each power of two: an outlier costs
the others little, and large values pay for it: between 64 and 128 E4M3 has 8 points and INT8 has 64.

The second choice is how many values share a scale: a whole tensor, an output channel of a weight (a row of W), or a
token of an activation. With 8-bit weights and activations neither can have a scale for each *input* channel: the
hardware sums over the input channels in one go, and scales only the sum. Outliers there are what SmoothQuant is for.

With 16 codes a whole row can't share a scale: its largest weight would leave too few codes to all others. So weights of
4 bits are cut into groups of g columns, each with a scale of its own (ZeroQuant-FP's g is 256, MXFP4's 32, NVFP4's 16).

Scales and rounding are compressed-tensors' own, bit for bit, so what is seen here is what a checkpoint will hold.

Hardware for FP8 multiplies FP8 by FP8, so FP4 weights are first cast to FP8, each multiplied with its group's scale. By
a scale of 2^n that is an addition of n to the exponent's bits, and exact; any other scale wants a multiplier and rounds
once more. So ZeroQuant-FP (Wu et al., arXiv 2307.09782) constrains the scales:

    M1:   Ŝ_i = 2^⌈log2 S_i⌉                          each by itself
    M2:   Ŝ_i = S_max / 2^⌈log2(S_max / S_i)⌉         within a block of rows; S_max stays as it is

With M2 one real number is left for a block of rows and each group of columns, applied to the sum over that group; the
casts see only powers of two. M1's exponents follow the weights' absolute size, M2's only how rows differ.

What is S? A scale can be what a code is multiplied with, or its inverse, what a weight is multiplied with before it is
rounded. ⌈ ⌉ makes S larger in M1 and, but for the largest, smaller in M2. So each reading makes one of the two clip the
largest weights of most groups: the first M2, the second M1. The paper's formula does not say which, so `reading` is a
parameter, as is the rounding of the exponent. Weights must be quantized again with the new scales, and clamped: codes
of the old scales mean other numbers now.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.linalg import vector_norm

from labkit.errors import DataError, UsageError

Granularity = Literal["per-tensor", "per-channel", "per-token"]
ExponentRounding = Literal["ceil", "nearest"]
Reading = Literal["S", "1/S"]
FLOAT32_EXPONENT = 0x7F800000  # the bits of a float32 that hold its exponent


# --- grids ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A number format: its grid in the format's own units, before any scale.

    mantissa_bits: stored bits after the leading one; smallest_subnormal: smallest positive value, also the smallest
    step; dtype: the torch type that stores it, None if torch has none that holds one value an element.
    Sources: OCP 8-bit Floating Point (OFP8) and Microscaling (MX) v1.0.
    """

    name: str
    bits: int
    exponent_bits: int
    mantissa_bits: int
    min_value: float
    max_value: float
    smallest_subnormal: float
    dtype: torch.dtype | None = None

    @property
    def half_range(self) -> float:
        """R, what the largest magnitude is mapped to: 448 for E4M3.

        For INT8, which reaches from -128 to 127, it is 127.5, and values are clamped from there; the papers' symmetric
        grid stops at -127 and divides by 127.
        """
        return (self.max_value - self.min_value) / 2

    @property
    def dynamic_range_log2(self) -> float:
        """Largest over smallest positive value in powers of two: E4M3 (448 / 2^-9) 17.8, E5M2 31.8, INT8 7.0."""
        return math.log2(self.max_value / self.smallest_subnormal)

    @property
    def binades(self) -> int:
        """How many powers of two the positive values touch: E4M3 18 (2^-9 to 2^8), E5M2 32, INT8 7, E2M1 4."""
        return math.frexp(self.max_value)[1] - math.frexp(self.smallest_subnormal)[1] + 1

    @property
    def quoted_range_log2(self) -> int:
        """The figure that guides quote as "dynamic range 2^n": E4M3 18, E5M2 32, INT8 8.

        It is not one measure: of a floating-point format it counts binades, of INT8 all codes, the sign included.
        Counted as the others are, by magnitude, INT8 has 2^7: the gap to E4M3 is wider than the quoted figures say.
        """
        return self.binades if self.exponent_bits else self.bits

    def values(self) -> Tensor:
        """All representable finite numbers, ascending, zero once: float64 [253] for E4M3, [256] for INT8."""
        positive, value = [], self.smallest_subnormal
        while value <= -self.min_value:  # INT8 has one number more below zero than above
            positive.append(value)
            binade = 2.0 ** (math.frexp(value)[1] - 1)  # frexp: value = f · 2^e with f in [0.5, 1)
            value += max(binade * 2.0**-self.mantissa_bits, self.smallest_subnormal)
        negative = [-value for value in reversed(positive)]
        above = [value for value in positive if value <= self.max_value]
        return torch.tensor([*negative, 0.0, *above], dtype=torch.float64)


# "fn" in torch's name of E4M3: finite and NaN only. It gave up infinities, which is how its top reaches 448.
E4M3 = Format("E4M3", 8, 4, 3, -448.0, 448.0, 2.0**-9, torch.float8_e4m3fn)
E5M2 = Format("E5M2", 8, 5, 2, -57344.0, 57344.0, 2.0**-16, torch.float8_e5m2)
INT8 = Format("INT8", 8, 0, 7, -128.0, 127.0, 1.0, torch.int8)
E2M1 = Format("E2M1", 4, 2, 1, -6.0, 6.0, 0.5)
INT4 = Format("INT4", 4, 0, 3, -8.0, 7.0, 1.0)
INT3 = Format("INT3", 3, 0, 2, -4.0, 3.0, 1.0)
INT2 = Format("INT2", 2, 0, 1, -2.0, 1.0, 1.0)
# No standard has E3M0: powers of two and zero, as some papers try it. Without a mantissa ties go away from zero.
E3M0 = Format("E3M0", 4, 3, 0, -16.0, 16.0, 0.25)
FORMATS = (E4M3, E5M2, INT8, E2M1, INT4, INT3, INT2, E3M0)


# --- round-to-nearest -------------------------------------------------------------------------------------------------


def scale_for(x: Tensor, fmt: Format, granularity: Granularity) -> Tensor:
    """The symmetric scale s = max|x| / R of each group of values, in x's dtype, as compressed-tensors calculates it.

    x: a weight [rows, columns] for per-channel, anything [..., features] otherwise.
    Returns [1] for per-tensor, [rows, 1] for per-channel, [..., 1] for per-token; a group of zeros gets the dtype's
    epsilon, so that 0 / s stays 0.
    Errors: UsageError for an unknown granularity or a weight that is not a matrix; DataError for NaN or infinity in x.
    """
    _check_name("granularity", granularity, get_args(Granularity))
    if granularity == "per-channel" and x.ndim != 2:
        raise UsageError(
            f"per-channel scales want a weight of shape [rows, columns], not {list(x.shape)}.",
            "A channel is a row of a weight matrix, one output of the layer.",
            "Give a matrix, or ask for per-token scales if this is an activation.",
        )
    # [1], or one entry for each row: channels are rows of W, tokens are rows of X
    absmax = x.abs().amax().reshape(1) if granularity == "per-tensor" else x.abs().amax(dim=-1, keepdim=True)
    if not bool(absmax.isfinite().all()):
        raise DataError(
            f"The tensor of shape {list(x.shape)} holds NaN or infinity.",
            "One such value makes the scale of its whole group useless.",
            "Find where it comes from: a damaged checkpoint, or an overflow in float16 (load the model in bfloat16).",
        )
    # R as a tensor of x's dtype and device: by a Python number a GPU multiplies with 1/R, which rounds differently
    scale = absmax / torch.tensor(fmt.half_range, dtype=x.dtype, device=x.device)
    return torch.where(scale == 0, torch.finfo(x.dtype).eps, scale)


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UsageError(f"There is no {what} {name!r}.", fix=f"Use one of {', '.join(known)}.")


def round_to_grid(x: Tensor, fmt: Format) -> Tensor:
    """The nearest grid point to each value of x (in grid units), ties to the even neighbor; same shape and dtype as x.

    Values outside the grid saturate. The step at x is 2^(floor(log2|x|) - mantissa bits), but never less than the
    smallest subnormal: that one line holds for normal numbers, subnormals and integers alike.
    """
    clamped = x.clamp(fmt.min_value, fmt.max_value).float()
    power = (clamped.view(torch.int32) & FLOAT32_EXPONENT).view(torch.float32)  # 2^floor(log2|x|): no sign, no mantissa
    step = (power * 2.0**-fmt.mantissa_bits).clamp(min=fmt.smallest_subnormal)
    return (torch.round(clamped / step) * step).to(x.dtype)


def quantize(x: Tensor, scale: Tensor, fmt: Format) -> Tensor:
    """q = round(clamp(x / s)): the grid points, same shape as x.

    x: [..., features]; scale: as from `scale_for`, broadcast against x. Returns fmt.dtype (int8, float8), or the dtype
    of x / scale where torch stores no such type (E2M1). The division runs in the inputs' own dtype, as in
    compressed-tensors: bfloat16 inputs are rounded once to bfloat16 and once to the grid.
    """
    q = round_to_grid(x / scale, fmt)
    return q if fmt.dtype is None else q.to(fmt.dtype)


def dequantize(q: Tensor, scale: Tensor) -> Tensor:
    """x̂ = q · s, same shape as q, in the scale's dtype."""
    return q.to(scale.dtype) * scale


def quantize_dequantize(x: Tensor, scale: Tensor, fmt: Format) -> Tensor:
    """x̂ for a given scale: what is left of x after the trip to the grid and back (same shape, the scale's dtype)."""
    return dequantize(quantize(x, scale, fmt), scale)


def round_to_nearest(x: Tensor, fmt: Format, granularity: Granularity) -> Tensor:
    """RTN whole: take the scale from x itself, quantize, dequantize; same shape and dtype as x."""
    return quantize_dequantize(x, scale_for(x, fmt, granularity), fmt)


def relative_error(x: Tensor, x_hat: Tensor) -> float:
    """||x - x̂|| / ||x|| in the Frobenius norm, calculated in float64; 0 where both are zero."""
    error, size = float(vector_norm(x.double() - x_hat.double())), float(vector_norm(x.double()))
    return error / size if size else math.inf if error else 0.0


# --- groups of columns ------------------------------------------------------------------------------------------------


def fitting_group(columns: int, wanted: int) -> int:
    """The largest group size up to `wanted` that divides the columns: of 256, it is 256 for 4,096 and 224 for 896.

    Raises UsageError unless both are positive.
    """
    if columns < 1 or wanted < 1:
        raise UsageError(f"{columns} columns can't be cut into groups of {wanted}.", fix="Give two positive numbers.")
    return next(size for size in range(min(wanted, columns), 0, -1) if columns % size == 0)


def group_scales(W: Tensor, fmt: Format, group_size: int) -> Tensor:
    """`scale_for` each group of columns: W [rows, columns] -> [rows, columns / group_size], in W's dtype.

    Errors: UsageError for a group size that does not divide the columns, DataError for NaN or infinity in W.
    """
    if W.ndim != 2 or group_size < 1 or W.shape[1] % group_size:
        raise UsageError(
            f"Groups of {group_size} columns don't divide a weight of shape {list(W.shape)}.",
            "A group that reached into the next row would mix two outputs.",
            f"Use a divisor of {W.shape[-1]}; `fitting_group` finds the largest.",
        )
    grouped = W.reshape(W.shape[0], -1, group_size)  # [rows, groups, group_size]
    return scale_for(grouped, fmt, "per-token").squeeze(-1)


def for_each_column(scales: Tensor, columns: int) -> Tensor:
    """Group scales [rows, groups] repeated, one for each column, [rows, columns]: what W is divided by."""
    return scales.repeat_interleave(columns // scales.shape[-1], dim=-1)


# --- scales that are powers of two ------------------------------------------------------------------------------------


def m1(scales: Tensor, rounding: ExponentRounding = "ceil", reading: Reading = "S") -> Tensor:
    """Each scale as a power of two; same shape and dtype.

    scales: what codes are multiplied with. rounding: "nearest" rounds the exponent instead of raising it. reading: what
    the formula's S is, the scale or its inverse; see above.
    Errors: UsageError for an unknown name, DataError for a scale that is not positive and finite.
    """
    return _times_powers(torch.ones_like(scales), scales, rounding, reading, up=reading == "S")


def m2(scales: Tensor, rows: int, rounding: ExponentRounding = "ceil", reading: Reading = "1/S") -> Tensor:
    """Each scale as a real one times a power of two; same shape and dtype.

    scales: [rows of W, groups], what codes are multiplied with. Where weights are all zero it is the dtype's epsilon
    (`scale_for`), which is never taken for the real one of its block. rows: how many rows make a block; in each group
    of columns they share the real scale. rounding, reading and errors: as for `m1`; UsageError if blocks don't divide
    the rows.
    """
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
        kept = blocks.masked_fill(dead, 0).amax(dim=1, keepdim=True)  # S_max, [blocks, 1, groups]
    else:
        kept = blocks.masked_fill(dead, torch.inf).amin(dim=1, keepdim=True)  # the largest 1/S
    return _times_powers(kept, blocks, rounding, reading, up=reading == "1/S").reshape(scales.shape)


def _times_powers(kept: Tensor, S: Tensor, rounding: ExponentRounding, reading: Reading, up: bool) -> Tensor:
    """kept · 2^n for each S, n = log2(S / kept) rounded up, down or to nearest; with S = f · 2^e, f in [0.5, 1)."""
    _check_name("rounding", rounding, get_args(ExponentRounding))
    _check_name("reading", reading, get_args(Reading))
    if not bool((S.isfinite() & (S > 0)).all()):
        raise DataError(
            f"Scales of shape {list(S.shape)} hold a value that is zero, negative, NaN or infinite.",
            "It has no logarithm, so it has no nearest power of two.",
            "Take scales from `scale_for` or `group_scales`: they are positive wherever the weights are numbers.",
        )
    (f, e), (f_kept, e_kept) = torch.frexp(S.float()), torch.frexp(kept.float())
    n = e - e_kept  # f / f_kept lies between 0.5 and 2, so up and down need no division
    if rounding == "nearest":
        n = n + torch.log2(f / f_kept).round().int()
    else:
        n = n + (f > f_kept).int() if up else n - (f < f_kept).int()
    return _ldexp(kept, n)


def _ldexp(x: Tensor, n: Tensor) -> Tensor:
    """x · 2^n, in x's dtype."""
    return torch.ldexp(*torch.broadcast_tensors(x.float(), n)).to(x.dtype)


class Cast(NamedTuple):
    """codes: float8 E4M3. exceptions: boolean, where the addition could not be used."""

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
    multiplied = _ldexp(q.float(), exponents).clamp(E4M3.min_value, E4M3.max_value).to(torch.float8_e4m3fn)
    codes = torch.where(exceptions, multiplied.view(torch.uint8), added.to(torch.uint8))
    return Cast(codes.view(torch.float8_e4m3fn), exceptions)
