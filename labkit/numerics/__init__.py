"""The methods of the labs from scratch, in pure torch and the papers' notation; no files, no models.

`formats`: grids, scales, round-to-nearest, powers of two. `methods`: SmoothQuant, GPTQ, LoRC. Tests hold each against
the library that does it in production: compressed-tensors bit for bit, llm-compressor within a stated tolerance.
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
    ExponentRounding,
    Format,
    Granularity,
    Reading,
    cast_to_fp8,
    dequantize,
    fitting_group,
    for_each_column,
    group_scales,
    m1,
    m2,
    quantize,
    quantize_dequantize,
    relative_error,
    round_to_nearest,
    scale_for,
)
from labkit.numerics.methods import (
    DAMPENING,
    LowRank,
    channel_absmax,
    gptq,
    hessian,
    low_rank_correction,
    output_error,
    smoothing_scales,
)
