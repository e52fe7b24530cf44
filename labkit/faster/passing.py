"""SmoothQuant with one run of each block in place of two.

llm-compressor runs a block over all rows to see how large its channels are, smooths it, and runs it again to hand its
outputs on. Smoothing leaves a block's function as it is, so the outputs of the first run will do.

GPTQ could be served by that run, too: the Hessian of smoothed inputs is diag(1/s) H diag(1/s). But then SmoothQuant
would see inputs that quantized blocks have changed, and its scales would no longer be the same for the same model and
rows: two processes that share a calibration ended with other scales than one, and with 12% other codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Infer = Callable[..., Any]


def with_half_a_round_for_smoothquant(theirs: Infer) -> Infer:
    """`CalibrationPipeline.from_modifiers`, whose pipeline for SmoothQuant alone runs each block once."""

    def from_modifiers(modifiers: list[Any], user: str | None = None) -> Any:
        pipeline = theirs(modifiers, user)
        alone = [type(each).__name__ for each in modifiers] == ["SmoothQuantModifier"]
        return _without_second_run(pipeline) if alone else pipeline

    return from_modifiers


def _without_second_run(pipeline: Any) -> Any:
    from compressed_tensors.utils import patch_attr

    def run(model: Any, dataloader: Any, dataset_args: Any) -> None:
        with patch_attr(dataset_args, "propagate_error", False):
            pipeline(model, dataloader, dataset_args)

    return run
