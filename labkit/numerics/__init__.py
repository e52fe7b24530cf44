"""The methods of the labs from scratch, in pure torch and the papers' notation; no files, no models.

Read in this order: `formats` (grids, scales, round-to-nearest), `smoothquant`, `gptq`, `ldlq` (the same without an
inverse); and for 4 bits `groups` (scales for a few columns each), `lorc` (low-rank compensation), `pow2` (scales that
are powers of two). Tests hold each against the library that does it in production, where there is one:
compressed-tensors bit for bit, llm-compressor within a stated tolerance.
"""

from labkit.numerics.formats import (
    E2M1,
    E3M0,
    E4M3,
    E5M2,
    FORMATS,
    INT2,
    INT3,
    INT4,
    INT8,
    Format,
    Granularity,
    dequantize,
    quantize,
    quantize_dequantize,
    relative_error,
    round_to_grid,
    round_to_nearest,
    scale_for,
    sqnr_db,
)
from labkit.numerics.gptq import DAMPENING, gptq, hessian, output_error
from labkit.numerics.groups import fitting_group, for_each_column, group_scales
from labkit.numerics.ldlq import ldlq, upper_factor
from labkit.numerics.lorc import LowRank, low_rank_correction
from labkit.numerics.pow2 import Cast, ExponentRounding, Reading, cast_to_fp8, m1, m2
from labkit.numerics.smoothquant import Smoothed, channel_absmax, smooth, smoothing_scales

__all__ = [
    "DAMPENING",
    "E2M1",
    "E3M0",
    "E4M3",
    "E5M2",
    "FORMATS",
    "INT2",
    "INT3",
    "INT4",
    "INT8",
    "Cast",
    "ExponentRounding",
    "Format",
    "Granularity",
    "LowRank",
    "Reading",
    "Smoothed",
    "cast_to_fp8",
    "channel_absmax",
    "dequantize",
    "fitting_group",
    "for_each_column",
    "gptq",
    "group_scales",
    "hessian",
    "ldlq",
    "low_rank_correction",
    "m1",
    "m2",
    "output_error",
    "quantize",
    "quantize_dequantize",
    "relative_error",
    "round_to_grid",
    "round_to_nearest",
    "scale_for",
    "smooth",
    "smoothing_scales",
    "sqnr_db",
    "upper_factor",
]
