"""The methods of the labs from scratch, in pure torch and the papers' notation; no files, no models.

Read in this order: `formats` (grids, scales, round-to-nearest), `smoothquant`, `gptq`. Tests hold each against the
library that does it in production: compressed-tensors bit for bit, llm-compressor within a stated tolerance.
"""

from labkit.numerics.formats import (
    E2M1,
    E4M3,
    E5M2,
    FORMATS,
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
from labkit.numerics.gptq import gptq, hessian, output_error
from labkit.numerics.smoothquant import Smoothed, channel_absmax, smooth, smoothing_scales

__all__ = [
    "E2M1",
    "E4M3",
    "E5M2",
    "FORMATS",
    "INT8",
    "Format",
    "Granularity",
    "Smoothed",
    "channel_absmax",
    "dequantize",
    "gptq",
    "hessian",
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
]
