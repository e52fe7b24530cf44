"""llm-compressor's rounding, SmoothQuant and GPTQ as labkit runs them: the same methods, fewer steps.

Four things cost time, and none of them changes what the methods ask for:

- The Hessian's inverse and the inverse's factor. LDLQ (numerics/ldlq.py) finds the same grid points from one factor of
  the Hessian itself; float sums come in another order, so a weight that lies between two points may fall to the other.
- X Xᵀ of the same X for q, k and v, and again for gate and up: it is multiplied once, and added to each Hessian.
- Four runs of every block over the calibration rows where three do (passing.py).
- Three conversions of every FP8 weight where one does (rounding.py).

All but the third are for a CPU: on a GPU llm-compressor's own kernels are left alone. tests/test_faster.py holds all
four against llm-compressor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from labkit.faster.passing import with_half_a_round_for_smoothquant
from labkit.faster.rounding import in_one_conversion
from labkit.faster.solving import Hessians, by_ldlq

__all__ = ["faster"]


@contextmanager
def faster() -> Iterator[None]:
    """Inside the block `oneshot` works as this package says."""
    from compressed_tensors.utils import patch_attr
    from llmcompressor.pipelines.registry import CalibrationPipeline

    base: Any = import_module("llmcompressor.modifiers.gptq.base")
    rounding: Any = import_module("compressed_tensors.quantization.lifecycle.forward_helpers")
    from_modifiers = with_half_a_round_for_smoothquant(CalibrationPipeline.from_modifiers)
    hessians = Hessians(base.accumulate_hessian)
    with (
        patch_attr(base, "quantize_weight", by_ldlq(base.quantize_weight, hessians.forget)),
        patch_attr(base, "accumulate_hessian", hessians.accumulate),
        patch_attr(rounding, "_quantize", in_one_conversion(rounding._quantize)),
        patch_attr(CalibrationPipeline, "from_modifiers", from_modifiers),
    ):
        yield
