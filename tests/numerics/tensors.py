"""What the tests of the number formats share: property-test settings, and equality of bits."""

from __future__ import annotations

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

SAME_BITS_AS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8}

# A slow machine must not fail a test, so no deadline; nothing is kept between runs.
STEADY = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def every_bfloat16() -> Tensor:
    """All finite bfloat16 numbers, [65280]."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    return every[every.isfinite()]


def same_bits(a: Tensor, b: Tensor) -> bool:
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    bits = SAME_BITS_AS.get(a.dtype, a.dtype)
    return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))
