"""GPTQ against round-to-nearest, which it must beat, and against llm-compressor, which must find the same grid points.

Tolerance against llm-compressor: both work in float32 but sum in different orders, so a weight that lies almost midway
between two grid points may fall to either side, and the rest of its row replies to that. Hence: at most 5% of the rows
may differ, each must part by a single grid step, and the output error may differ by 0.5%. Measured over 25 seeds, both
formats and dtypes, dampening 0.01 and 0.1, one and two threads: 372 of 400 matrices equal throughout, at most 2 rows of
96 differ, the output error by at most 0.13%.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labkit.errors import DataError, UsageError
from labkit.numerics import (
    E2M1,
    E4M3,
    INT4,
    INT8,
    Format,
    dequantize,
    for_each_column,
    gptq,
    group_scales,
    hessian,
    output_error,
    quantize,
    quantize_dequantize,
    relative_error,
    round_to_nearest,
    scale_for,
)
from tests.numerics.production import calibration_rows, compress, small_llama
from tests.numerics.tensors import STEADY

MAX_ROWS_DIFFERENT = 0.05
MAX_ERROR_DIFFERENCE = 5e-3

both_formats = pytest.mark.parametrize("fmt", [INT8, E4M3], ids=lambda fmt: fmt.name)


def correlated_inputs(tokens: int, d: int, seed: int) -> Tensor:
    """Activations [tokens, d] that share a few directions, as real ones do, with channels of different size."""
    random = torch.Generator().manual_seed(seed)
    few = torch.randn(tokens, d // 4, generator=random) @ torch.randn(d // 4, d, generator=random)
    size = torch.logspace(-1, 1, d)[torch.randperm(d, generator=random)]
    return (few / (d // 4) ** 0.5 + 0.3 * torch.randn(tokens, d, generator=random)) * size


def weight(rows: int, d: int, seed: int) -> Tensor:
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(seed)) / d**0.5


def assert_same_grid_points(Q: Tensor, expected: Tensor, fmt: Format) -> None:
    """Two [rows, d] of grid points, apart from rows that part at a near tie."""
    index = torch.searchsorted(fmt.values(), Q.double()) - torch.searchsorted(fmt.values(), expected.double())
    parted = index.ne(0).any(dim=1)  # [rows]
    assert parted.float().mean() <= MAX_ROWS_DIFFERENT
    for steps in index[parted]:
        assert steps[steps != 0][0].abs() == 1


def assert_same_result(ours: Tensor, theirs: Tensor, W: Tensor, scale: Tensor, fmt: Format, x: Tensor) -> None:
    """ours: grid points [rows, d]; theirs: dequantized weights [rows, d], by GPTQ and not by its fallback to RTN."""
    our_error, their_error = output_error(W, dequantize(ours, scale), x), output_error(W, theirs, x)
    assert 0 < their_error < 0.95 * output_error(W, round_to_nearest(W, fmt, "per-channel"), x)
    assert our_error == pytest.approx(their_error, rel=MAX_ERROR_DIFFERENCE)
    assert_same_grid_points(ours, quantize(theirs, scale, fmt), fmt)


# ---- the Hessian


def test_the_hessian_is_the_second_derivative_of_the_mean_squared_output_error() -> None:
    x = correlated_inputs(32, 6, seed=0).double()
    w = torch.zeros(6, dtype=torch.float64)
    second = torch.autograd.functional.hessian(lambda change: (x @ change).square().mean(), w)
    torch.testing.assert_close(hessian(x), second.float())


def test_it_does_not_care_how_tokens_are_split_into_rows() -> None:
    x = correlated_inputs(64, 16, seed=0)
    torch.testing.assert_close(hessian(x.reshape(4, 16, 16)), hessian(x))


# ---- better than RTN


@both_formats
@STEADY
@given(seed=st.integers(0, 10_000))
def test_its_output_error_is_smaller_than_that_of_rtn_on_inputs_it_has_not_seen(fmt: Format, seed: int) -> None:
    W, x = weight(48, 64, seed), correlated_inputs(1024, 64, seed)
    calibration, unseen = x[:512], x[512:]
    scale = scale_for(W, fmt, "per-channel")
    W_hat = dequantize(gptq(W, hessian(calibration), scale, fmt), scale)
    rtn = round_to_nearest(W, fmt, "per-channel")
    assert output_error(W, W_hat, unseen) < 0.9 * output_error(W, rtn, unseen)
    assert relative_error(W, W_hat) > relative_error(
        W, rtn
    )  # it pays with the weights' own error, which RTN makes least


@both_formats
def test_with_uncorrelated_inputs_there_is_nothing_to_gain_and_it_equals_rtn(fmt: Format) -> None:
    W = weight(16, 32, seed=1)
    scale = scale_for(W, fmt, "per-channel")
    Q = gptq(W, torch.eye(32), scale, fmt)
    assert torch.equal(dequantize(Q, scale), round_to_nearest(W, fmt, "per-channel"))


@both_formats
def test_more_dampening_brings_it_closer_to_rtn(fmt: Format) -> None:
    W, x = weight(32, 64, seed=2), correlated_inputs(512, 64, seed=2)
    scale = scale_for(W, fmt, "per-channel")
    rtn = quantize(W, scale, fmt).float()
    moved = [
        float((gptq(W, hessian(x), scale, fmt, dampening_frac=frac).float() != rtn).float().mean())
        for frac in (0.01, 1.0, 1000.0)
    ]
    assert moved[0] > moved[1] > moved[2]
    assert moved[2] < 0.01


@both_formats
def test_the_block_size_changes_speed_only(fmt: Format) -> None:
    W, x = weight(32, 96, seed=3), correlated_inputs(512, 96, seed=3)
    scale, H = scale_for(W, fmt, "per-channel"), hessian(x)
    whole = gptq(W, H, scale, fmt, block_size=96)
    for block_size in (1, 7, 128):
        assert_same_grid_points(gptq(W, H, scale, fmt, block_size=block_size), whole, fmt)


# ---- against llm-compressor


@both_formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("dampening_frac", [0.01, 0.1])
def test_llm_compressors_quantize_weight_finds_the_same_grid_points(
    fmt: Format, dtype: torch.dtype, dampening_frac: float
) -> None:
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    W, x = weight(96, 256, seed=4).to(dtype), correlated_inputs(2048, 256, seed=4)
    scale, H = scale_for(W, fmt, "per-channel"), hessian(x)
    args = QuantizationArgs(num_bits=8, type="int" if fmt is INT8 else "float", strategy="channel")
    theirs, _, fell_back = quantize_weight(
        W.to(torch.float32, copy=True).unsqueeze(0),  # it works in its inputs
        H.clone().unsqueeze(0),
        scale.unsqueeze(0),
        torch.zeros_like(scale).unsqueeze(0),
        None,
        args,
        blocksize=128,
        percdamp=dampening_frac,
    )
    assert not fell_back.any()
    ours = gptq(W, H, scale, fmt, dampening_frac=dampening_frac)
    assert ours.dtype == fmt.dtype
    assert_same_result(ours, theirs[0], W, scale, fmt, x)


@pytest.mark.parametrize("fmt", [INT4, E2M1, INT8, E4M3], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("group_size", [64, 256])
def test_llm_compressors_quantize_weight_finds_the_same_grid_points_with_scales_for_groups(
    fmt: Format, group_size: int
) -> None:
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    W, x = weight(96, 256, seed=4), correlated_inputs(2048, 256, seed=4)
    scales, H = group_scales(W, fmt, group_size), hessian(x)
    theirs, _, fell_back = quantize_weight(
        W.clone().unsqueeze(0),
        H.clone().unsqueeze(0),
        scales.unsqueeze(0),
        torch.zeros_like(scales).unsqueeze(0),
        None,
        QuantizationArgs(
            num_bits=fmt.bits, type="float" if fmt.exponent_bits else "int", strategy="group", group_size=group_size
        ),
        blocksize=128,
        percdamp=0.01,
    )
    assert not fell_back.any()
    scale = for_each_column(scales, 256)
    ours = gptq(W, H, scale, fmt)
    their_error = output_error(W, theirs[0], x)
    assert their_error < 0.95 * output_error(W, quantize_dequantize(W, scale, fmt), x)
    assert output_error(W, dequantize(ours, scale), x) == pytest.approx(their_error, rel=MAX_ERROR_DIFFERENCE)
    parted = (dequantize(ours, scale) != theirs[0]).any(dim=1)
    assert parted.float().mean() <= MAX_ROWS_DIFFERENT


@pytest.mark.parametrize(("scheme", "fmt"), [("W8A8", INT8), ("FP8_DYNAMIC", E4M3)], ids=["W8A8", "FP8_DYNAMIC"])
def test_its_oneshot_on_a_llama_leaves_the_same_weights_in_all_seven_layers_of_a_block(
    scheme: str, fmt: Format, tmp_path: Path
) -> None:
    from llmcompressor.modifiers.gptq import GPTQModifier

    model, rows = small_llama(tmp_path), calibration_rows()
    linears = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and ".layers.0." in name  # later blocks see the first one's rounding
    }
    inputs: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _module, args, _output, name=name: inputs.update({name: args[0].detach()}))
        for name, module in linears.items()
    ]
    with torch.no_grad():
        model(rows)
    for hook in hooks:
        hook.remove()
    before = {name: module.weight.detach().clone() for name, module in linears.items()}

    recipe = GPTQModifier(targets="Linear", scheme=scheme, ignore=["lm_head"], actorder=None, dampening_frac=0.01)
    compress(model, [recipe], rows, tmp_path)

    assert len(linears) == 7
    for name, module in linears.items():
        W, x = before[name], inputs[name]
        scale = scale_for(W, fmt, "per-channel")
        torch.testing.assert_close(module.weight_scale, scale, rtol=0, atol=0)
        theirs = module.weight.detach()
        assert_same_result(gptq(W, hessian(x), scale, fmt), theirs, W, scale, fmt, x)


# ---- what can go wrong


def test_a_dead_input_channel_is_zeroed_and_disturbs_no_other() -> None:
    W, x = weight(16, 32, seed=5), correlated_inputs(256, 32, seed=5)
    x[:, 11] = 0.0
    scale = scale_for(W, INT8, "per-channel")
    Q = gptq(W, hessian(x), scale, INT8)
    assert (Q[:, 11] == 0).all()
    assert output_error(W, dequantize(Q, scale), x) < output_error(W, round_to_nearest(W, INT8, "per-channel"), x)


def test_a_dead_input_channel_alone_needs_no_dampening() -> None:
    W, x = weight(16, 32, seed=5), correlated_inputs(256, 32, seed=5)
    x[:, 11] = 0.0
    alive = torch.arange(32) != 11
    scale = scale_for(W, INT8, "per-channel")
    Q = gptq(W, hessian(x), scale, INT8, dampening_frac=0.0)
    without = gptq(W[:, alive], hessian(x[:, alive]), scale, INT8, dampening_frac=0.0)
    assert_same_grid_points(Q[:, alive], without, INT8)  # as if the channel were not there


def test_a_singular_hessian_is_an_error_that_names_the_knob_and_the_knob_helps() -> None:
    W = weight(8, 16, seed=6)
    x = torch.ones(64, 16)  # every channel says the same
    scale = scale_for(W, INT8, "per-channel")
    with pytest.raises(DataError, match=r"can't be inverted with dampening_frac=0\.0") as error:
        gptq(W, hessian(x), scale, INT8, dampening_frac=0.0)
    assert "Raise dampening_frac" in error.value.fix
    assert gptq(W, hessian(x), scale, INT8, dampening_frac=0.1).abs().max() > 100


def test_nan_in_the_activations_is_an_error_not_a_weight() -> None:
    W, x = weight(8, 16, seed=7), correlated_inputs(64, 16, seed=7)
    x[3, 5] = torch.nan
    with pytest.raises(DataError, match="can't be inverted"):
        gptq(W, hessian(x), scale_for(W, INT8, "per-channel"), INT8)


def test_a_scale_for_groups_that_was_not_spread_is_refused() -> None:
    W, x = weight(8, 16, seed=7), correlated_inputs(64, 16, seed=7)
    with pytest.raises(UsageError, match=r"the scale is \[8, 4\]"):
        gptq(W, hessian(x), group_scales(W, INT4, 4), INT4)


def test_a_hessian_of_another_layer_is_refused_with_both_shapes() -> None:
    W = weight(8, 16, seed=8)
    with pytest.raises(UsageError, match=r"W is \[8, 16\] and H is \[32, 32\]"):
        gptq(W, torch.eye(32), scale_for(W, INT8, "per-channel"), INT8)


def test_the_weight_is_left_alone() -> None:
    W, x = weight(8, 16, seed=9), correlated_inputs(64, 16, seed=9)
    before = W.clone()
    gptq(W, hessian(x), scale_for(W, INT8, "per-channel"), INT8)
    assert torch.equal(W, before)
