"""SmoothQuant and GPTQ from the same run of each block.

llm-compressor gives each of them a round of its own: SmoothQuant runs every block over all rows to see how large the
channels are, smooths, and runs it again to hand its outputs on; then GPTQ does the same. But what GPTQ wants to know of
the smoothed inputs follows from the inputs as they were. Smoothing divides channel j by s_j, x' = x / s, so

    H' = 2 X' X'ᵀ = diag(1/s) H diag(1/s)

and one run of a block, before it is smoothed, tells both. A second run, after it is quantized, hands its outputs on.
What SmoothQuant sees of a block is then what the quantized blocks before it give, as GPTQ sees it too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Infer = Callable[..., Any]


def in_one_pass(theirs: Infer) -> Infer:
    """`CalibrationPipeline.from_modifiers`: one round for SmoothQuant and GPTQ, half of one for SmoothQuant alone."""

    def from_modifiers(modifiers: list[Any], user: str | None = None) -> Any:
        if user not in (None, "independent"):
            return theirs(modifiers, user)
        if _are_smoothquant_and_gptq(modifiers):
            return _together(theirs(modifiers), *modifiers)
        if [type(each).__name__ for each in modifiers] == ["SmoothQuantModifier"]:
            return _without_second_run(theirs(modifiers))
        return theirs(modifiers, user)

    return from_modifiers


def _are_smoothquant_and_gptq(modifiers: list[Any]) -> bool:
    """Whether a recipe is these two, and GPTQ rounds no activations by ranges that it would see before smoothing."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    if [type(each) for each in modifiers] != [SmoothQuantModifier, GPTQModifier]:
        return False
    schemes = modifiers[1].resolved_config.config_groups.values()
    activations = [part for scheme in schemes for part in (scheme.input_activations, scheme.output_activations) if part]
    return all(part.dynamic is True for part in activations) and modifiers[1].resolved_config.kv_cache_scheme is None


def _together(pipeline: Any, smoothquant: Any, gptq: Any) -> Any:
    """The pipeline for both; when a block is smoothed, so are the Hessians that its inputs have left."""
    from compressed_tensors.utils import patch_attr
    from llmcompressor.modifiers.transform.smoothquant.base import MINIMUM_SMOOTHING_SCALE

    scales_of = type(smoothquant)._calculate_smoothing_scales

    def and_smooth_hessians(self: Any, layers: list[Any], activation_scales: Tensor) -> Tensor:
        scales: Tensor = scales_of(self, layers, activation_scales).clamp_min(MINIMUM_SMOOTHING_SCALE)  # [d]
        for layer in layers:
            if layer in gptq._hessians:
                s = scales.to(gptq._hessians[layer])
                gptq._hessians[layer] /= s[:, None] * s[None, :]
        return scales

    def run(model: Any, dataloader: Any, dataset_args: Any) -> None:
        with patch_attr(type(smoothquant), "_calculate_smoothing_scales", and_smooth_hessians):
            pipeline(model, dataloader, dataset_args)

    return run


def _without_second_run(pipeline: Any) -> Any:
    """SmoothQuant leaves a block's function as it is, so the outputs of the run before it can be handed on."""
    from compressed_tensors.utils import patch_attr

    def run(model: Any, dataloader: Any, dataset_args: Any) -> None:
        with patch_attr(dataset_args, "propagate_error", False):
            pipeline(model, dataloader, dataset_args)

    return run
