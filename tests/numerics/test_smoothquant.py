"""The migration: the function stays, the outliers go, and llm-compressor arrives at the same weights.

Tolerance against llm-compressor: 1e-4 relative in float32. The formula is the same; what differs is that the modifier
measures a layer's activations after it has smoothed the layers before, which float32 rounds differently.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labkit.errors import UsageError
from labkit.numerics import INT8, channel_absmax, relative_error, round_to_nearest, smooth, smoothing_scales
from labkit.numerics.smoothquant import MINIMUM_SCALE
from tests.numerics.production import calibration_rows, compress, small_llama
from tests.numerics.tensors import STEADY

ALPHA = 0.8
TOLERANCE = 1e-4
DIMENSION = 64


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt() * weight


def layer_with_outliers(seed: int = 0) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Hidden states [256, d], a norm weight [d] that blows up two channels, and two weights that read it."""
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(256, DIMENSION, generator=random)
    norm_weight = 1 + 0.1 * torch.randn(DIMENSION, generator=random)
    weights = [torch.randn(rows, DIMENSION, generator=random) / 8 for rows in (96, 32)]
    norm_weight[[5, 40]] *= 200
    for weight in weights:
        weight[:, [5, 40]] /= 200
    return hidden, norm_weight, weights


# ---- the formula


def test_scales_follow_the_papers_formula() -> None:
    x_absmax, weight_absmax = torch.tensor([4.0, 100.0, 0.25]), torch.tensor([0.25, 1.0, 4.0])
    assert smoothing_scales(x_absmax, weight_absmax, 0.5).tolist() == pytest.approx([4.0, 10.0, 0.25])
    assert smoothing_scales(x_absmax, weight_absmax, 0.0).tolist() == pytest.approx([4.0, 1.0, 0.25])  # 1 / max|W|
    assert smoothing_scales(x_absmax, weight_absmax, 1.0).tolist() == pytest.approx([4.0, 100.0, 0.25])  # max|X|


def test_at_one_half_both_sides_have_the_same_maximum_in_each_channel() -> None:
    x_absmax, weight_absmax = torch.rand(32) * 100 + 0.1, torch.rand(32) + 0.01
    scales = smoothing_scales(x_absmax, weight_absmax, 0.5)
    torch.testing.assert_close(x_absmax / scales, weight_absmax * scales)


def test_channels_that_nothing_feeds_or_nothing_reads_get_a_finite_positive_scale() -> None:
    x_absmax, weight_absmax = torch.tensor([0.0, 7.0, 0.0]), torch.tensor([1.0, 0.0, 0.0])
    scales = smoothing_scales(x_absmax, weight_absmax, 0.5)
    assert scales.tolist() == pytest.approx([MINIMUM_SCALE, 7.0, MINIMUM_SCALE])


def test_channel_maxima_run_over_all_rows_of_all_tensors() -> None:
    activations = torch.tensor([[[1.0, -2.0], [0.5, 0.0]], [[-3.0, 1.0], [0.0, 0.0]]])  # [batch, tokens, 2]
    assert channel_absmax(activations).tolist() == [3.0, 2.0]
    assert channel_absmax(torch.tensor([[1.0, -9.0]]), torch.tensor([[-4.0, 2.0], [0.0, 3.0]])).tolist() == [4.0, 9.0]


@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_an_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(UsageError, match=str(alpha)):
        smoothing_scales(torch.ones(2), torch.ones(2), alpha)


# ---- what it promises


@STEADY
@given(alpha=st.floats(0, 1), seed=st.integers(0, 1000))
def test_norm_and_layers_together_compute_the_same_function(alpha: float, seed: int) -> None:
    hidden, norm_weight, weights = layer_with_outliers(seed)
    hidden, norm_weight, weights = hidden.double(), norm_weight.double(), [weight.double() for weight in weights]
    x = rms_norm(hidden, norm_weight)
    smoothed = smooth(norm_weight, weights, smoothing_scales(channel_absmax(x), channel_absmax(*weights), alpha))
    for before, after in zip(weights, smoothed.weights, strict=True):
        torch.testing.assert_close(rms_norm(hidden, smoothed.norm_weight) @ after.T, x @ before.T)


def test_the_outlier_channels_are_gone_and_int8_works_again() -> None:
    hidden, norm_weight, weights = layer_with_outliers()
    x = rms_norm(hidden, norm_weight)
    smoothed = smooth(norm_weight, weights, smoothing_scales(channel_absmax(x), channel_absmax(*weights), ALPHA))
    x_smooth = rms_norm(hidden, smoothed.norm_weight)
    peaks, peaks_smooth = channel_absmax(x), channel_absmax(x_smooth)
    assert peaks.max() / peaks.median() > 100
    assert peaks_smooth.max() / peaks_smooth.median() < 5

    def w8a8(x: Tensor, weight: Tensor) -> Tensor:
        return round_to_nearest(x, INT8, "per-token") @ round_to_nearest(weight, INT8, "per-channel").T

    for before, after in zip(weights, smoothed.weights, strict=True):
        truth = x @ before.T
        assert relative_error(truth, w8a8(x, before)) > 0.2
        assert relative_error(truth, w8a8(x_smooth, after)) < 0.03


def test_dtypes_stay_and_the_inputs_are_left_alone() -> None:
    _, norm_weight, weights = layer_with_outliers()
    kept = norm_weight.clone()
    smoothed = smooth(norm_weight.bfloat16(), [weight.bfloat16() for weight in weights], torch.full((DIMENSION,), 2.0))
    assert {smoothed.norm_weight.dtype, *(weight.dtype for weight in smoothed.weights)} == {torch.bfloat16}
    smooth(norm_weight, weights, torch.full((DIMENSION,), 2.0))
    assert torch.equal(norm_weight, kept)


# ---- against llm-compressor


@dataclass(frozen=True)
class Group:
    """One norm, what it puts out over the calibration rows, and the layers that read it."""

    norm_weight: Tensor
    output: Tensor
    weights: list[Tensor]


READERS = {"input_layernorm": ["q_proj", "k_proj", "v_proj"], "post_attention_layernorm": ["gate_proj", "up_proj"]}


def groups_of(model: torch.nn.Module, rows: Tensor) -> dict[str, Group]:
    outputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _module, _inputs, output, name=name: outputs.update({name: output.detach()})
        )
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in READERS
    ]
    with torch.no_grad():
        model(rows)
    for hook in hooks:
        hook.remove()
    groups = {}
    for name, output in outputs.items():
        layer, _, norm = name.rpartition(".")
        weights = [
            module.weight.detach().clone()
            for path, module in model.get_submodule(layer).named_modules()
            if path.rpartition(".")[2] in READERS[norm]
        ]
        groups[name] = Group(model.get_submodule(name).weight.detach().clone(), output, weights)
    return groups


@pytest.fixture(scope="module")
def before_and_after(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Group], dict[str, Group]]:
    """A small Llama with outliers in its norms, before and after llm-compressor's SmoothQuantModifier."""
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    folder, rows = tmp_path_factory.mktemp("smoothquant"), calibration_rows()
    model = small_llama(folder)
    random = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("layernorm.weight"):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
            parameter.data[[3, 50]] *= 100
    model.get_submodule("model.layers.1.input_layernorm").weight.data[9] = 0.0  # a channel that is never active
    for projection in ("gate_proj", "up_proj"):
        model.get_submodule(f"model.layers.0.mlp.{projection}").weight.data[:, 7] = 0.0  # a channel that nothing reads
    before = groups_of(model, rows)
    compress(model, [SmoothQuantModifier(smoothing_strength=ALPHA)], rows, folder)
    return before, groups_of(model, rows)


def test_llm_compressor_ends_at_the_same_weights(
    before_and_after: tuple[dict[str, Group], dict[str, Group]],
) -> None:
    before, after = before_and_after
    assert len(before) == 4
    for name, group in before.items():
        x = group.output.flatten(0, 1)  # [tokens, d]
        x_range = x.amax(0) - x.amin(0)  # what llm-compressor puts in place of max|X_j| ...
        scales = smoothing_scales(x_range, 2 * channel_absmax(*group.weights), ALPHA)  # ... and of max|W_j|
        smoothed = smooth(group.norm_weight, group.weights, scales)
        torch.testing.assert_close(smoothed.norm_weight, after[name].norm_weight, rtol=TOLERANCE, atol=0)
        for ours, theirs, original in zip(smoothed.weights, after[name].weights, group.weights, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=TOLERANCE, atol=0)
            assert relative_error(original, theirs) > 0.1  # it did something


def test_the_papers_own_maxima_give_the_same_scales_up_to_one_factor_and_the_asymmetry_of_a_channel(
    before_and_after: tuple[dict[str, Group], dict[str, Group]],
) -> None:
    before, after = before_and_after
    for name, group in before.items():
        scales = smoothing_scales(channel_absmax(group.output), channel_absmax(*group.weights), ALPHA)
        theirs = group.norm_weight / after[name].norm_weight  # their s, read off the norm
        usual = (channel_absmax(group.output) > 0) & (channel_absmax(*group.weights) > 0)
        share = (theirs / scales)[usual] / 2 ** (2 * ALPHA - 1)
        # max X - min X lies between max|X| (one sign only) and 2 max|X| (symmetric)
        assert share.min() > 2**-ALPHA * (1 - TOLERANCE)
        assert share.max() < 1 + TOLERANCE
