"""Number formats of 8 bits and fewer, and round-to-nearest (RTN), the simplest way to quantize.

A format is a short list of numbers, its grid. To quantize a tensor is to divide it by a scale that fits it to the grid,
to round each value to the nearest grid point, and to keep the grid point and the scale:

    s  = max|x| / R        R: half the width of the grid (E4M3: 448, INT8: 127.5)
    q  = round(clamp(x / s))
    x̂  = q · s

The formats differ in where they put their points. INT8 has one step everywhere, so its error is the same for large and
small values, and one outlier, which sets the scale, leaves few points for all others. In a floating-point format the
step doubles with each power of two, so the error is relative to the value: an outlier costs the others little. Large
values pay for it: between 64 and 128 E4M3 has 8 points and INT8 has 64.

The second choice is how many values share a scale: a whole tensor, an output channel of a weight (a row of W), or a
token of an activation. A finer scale keeps an outlier's harm to its own row, and costs one more number for each row.
With 8-bit weights and activations neither can have a scale for each *input* channel: the hardware sums over the input
channels in one go, and scales only the sum. Outliers in input channels are what SmoothQuant is for (`smoothquant.py`).

Scales and rounding are compressed-tensors' own, bit for bit, so what is seen here is what a checkpoint will hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from labkit.errors import DataError, UsageError

Granularity = Literal["per-tensor", "per-channel", "per-token"]
FLOAT32_EXPONENT = 0x7F800000  # the bits of a float32 that hold its exponent


@dataclass(frozen=True)
class Format:
    """A number format: its grid in the format's own units, before any scale.

    mantissa_bits: stored bits after the leading one; min_normal: smallest value with a leading one;
    smallest_subnormal: smallest positive value, also the smallest step; dtype: the torch type that stores it, None if
    torch has none that holds one value an element. Sources: OCP 8-bit Floating Point (OFP8) and Microscaling (MX) v1.0.
    """

    name: str
    bits: int
    exponent_bits: int
    mantissa_bits: int
    min_value: float
    max_value: float
    min_normal: float
    smallest_subnormal: float
    dtype: torch.dtype | None

    @property
    def half_range(self) -> float:
        """R, what the largest magnitude is mapped to: 448 for E4M3, 127.5 for INT8.

        INT8 reaches from -128 to 127. compressed-tensors takes half of that width, so the largest magnitude lands on
        127.5 and is clamped or rounded from there; the papers' symmetric grid stops at -127 and divides by 127.
        """
        return (self.max_value - self.min_value) / 2

    @property
    def dynamic_range(self) -> float:
        """Largest over smallest positive value: E4M3 448 / 2^-9, E5M2 57344 / 2^-16, INT8 127 / 1, E2M1 6 / 0.5."""
        return self.max_value / self.smallest_subnormal

    @property
    def dynamic_range_log2(self) -> float:
        """The dynamic range in powers of two: E4M3 17.8, E5M2 31.8, INT8 7.0, E2M1 3.6."""
        return math.log2(self.dynamic_range)

    @property
    def binades(self) -> int:
        """How many powers of two the positive values touch: E4M3 18 (2^-9 to 2^8), E5M2 32, INT8 7, E2M1 4."""
        return _floor_log2(self.max_value) - _floor_log2(self.smallest_subnormal) + 1

    @property
    def quoted_range_log2(self) -> int:
        """The figure that guides quote as "dynamic range 2^n": E4M3 18, E5M2 32, INT8 8.

        It is not one measure. For a floating-point format it counts binades, subnormals included and the sign left
        out. For INT8 it counts all codes, the sign included: 2^8 = 256 of them. Counted as the others are, by
        magnitude, INT8 has 2^7: the gap to E4M3 is wider than the quoted figures say.
        """
        return self.binades if self.exponent_bits else self.bits

    def step(self, value: float) -> float:
        """The distance from a value (in grid units, not 0) to its neighbor away from zero."""
        return max(2.0 ** (_floor_log2(value) - self.mantissa_bits), self.smallest_subnormal)

    def values(self) -> Tensor:
        """All representable finite numbers, ascending, zero once: float64 [253] for E4M3, [256] for INT8."""
        negative = [-value for value in self._walk_to(-self.min_value)]
        return torch.tensor([*reversed(negative), 0.0, *self._walk_to(self.max_value)], dtype=torch.float64)

    def _walk_to(self, limit: float) -> list[float]:
        value, passed = self.smallest_subnormal, []
        while value <= limit:
            passed.append(value)
            value += self.step(value)
        return passed


def _floor_log2(value: float) -> int:
    return math.frexp(value)[1] - 1  # frexp: value = f · 2^e with f in [0.5, 1)


# "fn" in torch's name of E4M3: finite and NaN only. It gave up infinities, which is how its top reaches 448.
E4M3 = Format("E4M3", 8, 4, 3, -448.0, 448.0, 2.0**-6, 2.0**-9, torch.float8_e4m3fn)
E5M2 = Format("E5M2", 8, 5, 2, -57344.0, 57344.0, 2.0**-14, 2.0**-16, torch.float8_e5m2)
INT8 = Format("INT8", 8, 0, 7, -128.0, 127.0, 1.0, 1.0, torch.int8)
E2M1 = Format("E2M1", 4, 2, 1, -6.0, 6.0, 1.0, 0.5, None)
INT4 = Format("INT4", 4, 0, 3, -8.0, 7.0, 1.0, 1.0, None)
INT3 = Format("INT3", 3, 0, 2, -4.0, 3.0, 1.0, 1.0, None)
INT2 = Format("INT2", 2, 0, 1, -2.0, 1.0, 1.0, 1.0, None)
# No standard has E3M0: powers of two and zero, as some papers try it. Without a mantissa ties go away from zero.
E3M0 = Format("E3M0", 4, 3, 0, -16.0, 16.0, 0.25, 0.25, None)
FORMATS = (E4M3, E5M2, INT8, E2M1, INT4, INT3, INT2, E3M0)


def scale_for(x: Tensor, fmt: Format, granularity: Granularity) -> Tensor:
    """The symmetric scale s = max|x| / R of each group of values, in x's dtype, as compressed-tensors calculates it.

    x: a weight [rows, columns] for per-channel, anything [..., features] otherwise.
    Returns [1] for per-tensor, [rows, 1] for per-channel, [..., 1] for per-token; a group of zeros gets the dtype's
    epsilon, so that 0 / s stays 0.
    Errors: UsageError for an unknown granularity or a weight that is not a matrix; DataError for NaN or infinity in x.
    """
    if granularity not in get_args(Granularity):
        raise UsageError(
            f"There is no granularity {granularity!r}.", fix=f"Use one of {', '.join(get_args(Granularity))}."
        )
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
    error, size = _norm(x.double() - x_hat.double()), _norm(x.double())
    if size == 0:
        return 0.0 if error == 0 else math.inf
    return error / size


def sqnr_db(x: Tensor, x_hat: Tensor) -> float:
    """Signal to quantization noise in decibels, 20 · log10(||x|| / ||x - x̂||); infinite where nothing was lost."""
    error = relative_error(x, x_hat)
    if error == 0:
        return math.inf
    return -20 * math.log10(error)


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))
