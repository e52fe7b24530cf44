"""SmoothQuant, GPTQ and LoRC: what each promises, and llm-compressor, which must arrive at the same.

Tolerance for SmoothQuant: 1e-4 relative in float32. The formula is the same; what differs is that the modifier measures
a layer's activations after it has smoothed the layers before, which float32 rounds differently.

Tolerance for GPTQ: both work in float32 but sum in different orders, so a weight that lies almost midway between two
grid points may fall to either side, and the rest of its row replies to that. Hence: at most 5% of the rows may differ,
each must part by a single grid step, and the output error may differ by 0.5%. Measured over 25 seeds, both formats and
dtypes, dampening 0.01 and 0.1, one and two threads: 372 of 400 matrices equal throughout, at most 2 rows of 96 differ,
the output error by at most 0.13%.
"""

from __future__ import annotations

import itertools
import math
import re
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
    LowRank,
    channel_absmax,
    dequantize,
    for_each_column,
    gptq,
    group_scales,
    hessian,
    low_rank_correction,
    output_error,
    quantize,
    quantize_dequantize,
    relative_error,
    round_to_nearest,
    scale_for,
    smoothing_scales,
)
from labkit.numerics.methods import MINIMUM_SCALE
from tests.numerics.support import STEADY, both_dtypes, calibration_rows, compress, each, normal, seen_by, small_llama

ALPHA = 0.8
TOLERANCE = 1e-4  # SmoothQuant's
MAX_ROWS_DIFFERENT = 0.05  # GPTQ's
MAX_ERROR_DIFFERENCE = 5e-3
LDLQ = Path(__file__).parents[2] / "docs" / "ldlq.md"


# ---- SmoothQuant


@pytest.mark.parametrize(("alpha", "scales"), [(0.0, [4, 1, 0.25]), (0.5, [4, 10, 0.25]), (1.0, [4, 100, 0.25])])
def test_smoothing_scales_follow_the_papers_formula(alpha: float, scales: list[float]) -> None:
    x_absmax, weight_absmax = torch.tensor([4.0, 100.0, 0.25]), torch.tensor([0.25, 1.0, 4.0])
    assert smoothing_scales(x_absmax, weight_absmax, alpha).tolist() == pytest.approx(scales)
    # channels that nothing feeds or nothing reads get a finite positive scale
    unused = smoothing_scales(torch.tensor([0.0, 7.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]), 0.5)
    assert unused.tolist() == pytest.approx([MINIMUM_SCALE, 7.0, MINIMUM_SCALE])
    for beyond in (-0.1, 1.5):
        with pytest.raises(UsageError, match=str(beyond)):
            smoothing_scales(x_absmax, weight_absmax, beyond)


def test_channel_maxima_run_over_all_rows_of_all_tensors() -> None:
    activations = torch.tensor([[[1.0, -2.0], [0.5, 0.0]], [[-3.0, 1.0], [0.0, 0.0]]])  # [batch, tokens, 2]
    assert channel_absmax(activations).tolist() == [3.0, 2.0]
    assert channel_absmax(torch.tensor([[1.0, -9.0]]), torch.tensor([[-4.0, 2.0], [0.0, 3.0]])).tolist() == [4.0, 9.0]


READERS = {"input_layernorm": ("q_proj", "k_proj", "v_proj"), "post_attention_layernorm": ("gate_proj", "up_proj")}
Group = tuple[Tensor, Tensor, list[Tensor]]  # a norm's weight, its output over the rows, the weights that read it


def groups_of(model: torch.nn.Module, rows: Tensor) -> dict[str, Group]:
    norms = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in READERS]
    groups = {}
    for name, (_, output) in seen_by(model, norms, rows).items():
        layer, _, norm = name.rpartition(".")
        readers = [m for path, m in model.get_submodule(layer).named_modules() if path.endswith(READERS[norm])]
        weights = [reader.weight.detach().clone() for reader in readers]
        groups[name] = (model.get_submodule(name).weight.detach().clone(), output, weights)
    return groups


def test_llm_compressors_smoothquant_ends_at_the_same_weights(tmp_path: Path) -> None:
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    model, rows = small_llama(tmp_path), calibration_rows()
    random = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("layernorm.weight"):
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
            parameter.data[[3, 50]] *= 100
    model.get_submodule("model.layers.1.input_layernorm").weight.data[9] = 0.0  # a channel that is never active
    for projection in ("gate_proj", "up_proj"):
        model.get_submodule(f"model.layers.0.mlp.{projection}").weight.data[:, 7] = 0.0  # a channel that nothing reads
    before = groups_of(model, rows)
    compress(model, [SmoothQuantModifier(smoothing_strength=ALPHA)], rows, tmp_path)
    after = groups_of(model, rows)
    assert len(before) == 4
    for name, (norm_weight, output, weights) in before.items():
        their_norm_weight, _, their_weights = after[name]
        x, weight_absmax = output.flatten(0, 1), channel_absmax(*weights)  # [tokens, d], [d]
        x_range = x.amax(0) - x.amin(0)  # what llm-compressor puts in place of max|X_j| ...
        s = smoothing_scales(x_range, 2 * weight_absmax, ALPHA)  # ... and of max|W_j|
        torch.testing.assert_close(norm_weight / s, their_norm_weight, rtol=TOLERANCE, atol=0)
        for W, theirs in zip(weights, their_weights, strict=True):
            torch.testing.assert_close(W * s, theirs, rtol=TOLERANCE, atol=0)
            assert relative_error(W, theirs) > 0.1  # it did something
        # The paper's own maxima give the same scales up to one factor and the asymmetry of a channel:
        # max X - min X lies between max|X| (one sign only) and 2 max|X| (symmetric).
        x_absmax = channel_absmax(x)
        usual = (x_absmax > 0) & (weight_absmax > 0)
        share = (s / smoothing_scales(x_absmax, weight_absmax, ALPHA))[usual] / 2 ** (2 * ALPHA - 1)
        assert share.min() > 2**-ALPHA * (1 - TOLERANCE)
        assert share.max() < 1 + TOLERANCE


# ---- GPTQ


def problem(rows: int, d: int, seed: int, tokens: int = 512) -> tuple[Tensor, Tensor]:
    """A weight [rows, d], and inputs [tokens, d] that share a few directions, in channels of different size."""
    random = torch.Generator().manual_seed(seed)
    few = torch.randn(tokens, d // 4, generator=random) @ torch.randn(d // 4, d, generator=random)
    size = torch.logspace(-1, 1, d)[torch.randperm(d, generator=random)]
    x = (few / (d // 4) ** 0.5 + 0.3 * torch.randn(tokens, d, generator=random)) * size
    return normal(rows, d, seed=seed) / d**0.5, x


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
    assert 0 < their_error < 0.95 * output_error(W, quantize_dequantize(W, scale, fmt), x)
    assert our_error == pytest.approx(their_error, rel=MAX_ERROR_DIFFERENCE)
    assert_same_grid_points(ours, quantize(theirs, scale, fmt), fmt)


def test_the_hessian_is_the_second_derivative_of_the_mean_squared_output_error() -> None:
    x = normal(32, 6).double()
    w = torch.zeros(6, dtype=torch.float64)
    second = torch.autograd.functional.hessian(lambda change: (x @ change).square().mean(), w)
    torch.testing.assert_close(hessian(x), second.float())
    torch.testing.assert_close(hessian(x.reshape(4, 8, 6)), hessian(x))


@each("fmt", INT8, INT4)
def test_what_the_page_on_ldlq_computes_without_an_inverse_are_the_same_grid_points(fmt: Format) -> None:
    W, x = problem(48, 64, seed=4)
    H = hessian(x) + 0.01 * hessian(x).diagonal().mean() * torch.eye(64)
    scale = scale_for(W, fmt, "per-channel")
    (code,) = re.findall(r"```python\n(.*?)```", LDLQ.read_text(), re.DOTALL)
    names = {"torch": torch, "quantize_dequantize": quantize_dequantize, "W": W, "H": H, "d": 64, "scale": scale}
    exec(code, names | {"fmt": fmt}, found := {})
    assert_same_grid_points(quantize(found["W_hat"], scale, fmt), gptq(W, H, scale, fmt, dampening_frac=0.0), fmt)


@pytest.mark.parametrize("group_size", [0, 64, 256])
@each("fmt", INT4, E2M1, INT8, E4M3)
@both_dtypes
@pytest.mark.parametrize("dampening_frac", [0.01, 0.1])
def test_llm_compressors_quantize_weight_finds_the_same_grid_points(
    fmt: Format, group_size: int, dtype: torch.dtype, dampening_frac: float
) -> None:
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    W, x = problem(96, 256, seed=4, tokens=2048)
    W, H = W.to(dtype), hessian(x)
    scales = group_scales(W, fmt, group_size or 256)
    kind = {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    args = QuantizationArgs(num_bits=fmt.bits, type="float" if fmt.exponent_bits else "int", **kind)
    # it works in its inputs, and on several weights at once
    given = [
        each.unsqueeze(0) for each in (W.to(torch.float32, copy=True), H.clone(), scales, torch.zeros_like(scales))
    ]
    theirs, _, fell_back = quantize_weight(*given, None, args, blocksize=128, percdamp=dampening_frac)
    assert not fell_back.any()
    scale = for_each_column(scales, 256)
    before = W.clone()
    ours = gptq(W, H, scale, fmt, dampening_frac=dampening_frac)
    assert ours.dtype == (fmt.dtype or torch.float32)
    assert torch.equal(W, before)
    assert_same_result(ours, theirs[0], W, scale, fmt, x)


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
    seen = seen_by(model, list(linears), rows)
    before = {name: module.weight.detach().clone() for name, module in linears.items()}
    recipe = GPTQModifier(targets="Linear", scheme=scheme, ignore=["lm_head"], actorder=None, dampening_frac=0.01)
    compress(model, [recipe], rows, tmp_path)
    assert len(linears) == 7
    for name, module in linears.items():
        W, (x, _) = before[name], seen[name]
        scale = scale_for(W, fmt, "per-channel")
        torch.testing.assert_close(module.weight_scale, scale, rtol=0, atol=0)
        assert_same_result(gptq(W, hessian(x), scale, fmt), module.weight.detach(), W, scale, fmt, x)


def test_a_dead_input_channel_is_zeroed_and_the_others_are_as_if_it_were_not_there() -> None:
    W, x = problem(16, 32, seed=5, tokens=256)
    x[:, 11] = 0.0
    alive = torch.arange(32) != 11
    scale = scale_for(W, INT8, "per-channel")
    undamped = gptq(W, hessian(x), scale, INT8, dampening_frac=0.0)
    without = gptq(W[:, alive], hessian(x[:, alive]), scale, INT8, dampening_frac=0.0)
    assert (undamped[:, 11] == 0).all()
    assert_same_grid_points(undamped[:, alive], without, INT8)


def test_a_singular_hessian_is_an_error_that_names_the_knob_and_the_knob_helps() -> None:
    W, x = normal(8, 16, seed=6), torch.ones(64, 16)  # every channel says the same
    scale = scale_for(W, INT8, "per-channel")
    with pytest.raises(DataError, match=r"can't be inverted with dampening_frac=0\.0[\s\S]*Raise dampening_frac"):
        gptq(W, hessian(x), scale, INT8, dampening_frac=0.0)
    assert gptq(W, hessian(x), scale, INT8, dampening_frac=0.1).abs().max() > 100
    x[3, 5] = torch.nan  # is no weight either
    with pytest.raises(DataError, match="can't be inverted"):
        gptq(W, hessian(x), scale, INT8)


def test_a_scale_for_groups_that_was_not_spread_and_a_hessian_of_another_layer_are_refused() -> None:
    W, x = problem(8, 16, seed=7)
    with pytest.raises(UsageError, match=r"the scale is \[8, 4\]"):
        gptq(W, hessian(x), group_scales(W, INT4, 4), INT4)
    with pytest.raises(UsageError, match=r"W is \[8, 16\], H is \[32, 32\]"):
        gptq(W, torch.eye(32), scale_for(W, INT8, "per-channel"), INT8)


# ---- LoRC


def rounded(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    W = normal(rows, columns, seed=seed)
    return W, round_to_nearest(W, E2M1, "per-channel")


@STEADY
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 99))
def test_lorcs_error_is_that_of_the_truncated_singular_value_decomposition_and_never_grows_with_the_rank(
    rows: int, columns: int, seed: int
) -> None:
    W, W_hat = rounded(rows, columns, seed)
    singular = torch.linalg.svdvals((W - W_hat).double())
    errors = [before := float(torch.linalg.vector_norm(W - W_hat))]
    for rank in range(1, min(rows, columns) + 1):
        left = W - W_hat - low_rank_correction(W, W_hat, rank).product()
        errors.append(float(torch.linalg.vector_norm(left)))
        best = float(singular[rank:].square().sum().sqrt())  # Eckart and Young
        assert errors[-1] == pytest.approx(best, rel=1e-3, abs=1e-4)
    assert all(b <= a + 1e-5 * before for a, b in itertools.pairwise(errors))
    assert errors[-1] <= 1e-4 * before + 1e-6
    assert not low_rank_correction(W, W, 1).product().any(), "nothing lost needs nothing"


def test_both_factors_hold_the_root_of_the_singular_values_and_a_smaller_rank_their_first() -> None:
    W, W_hat = rounded(40, 24, 3)
    found = low_rank_correction(W, W_hat, 5)
    singular = torch.linalg.svdvals(W - W_hat)[:5]
    assert torch.allclose(found.singular_values, singular, rtol=1e-3)
    assert torch.allclose(found.V.square().sum(1), singular, rtol=1e-3)
    assert torch.allclose(found.U.T @ found.U, torch.diag(singular), atol=1e-3)
    assert torch.allclose(found.at(3).product(), low_rank_correction(W, W_hat, 3).product(), atol=1e-5)
    assert LowRank.bytes_at(40, 24, 8) == 2 * 8 * (40 + 24)


def test_a_correction_that_can_not_be_is_refused() -> None:
    W, W_hat = rounded(40, 24, 7)
    for rank in (0, -1, 25):
        with pytest.raises(UsageError, match=rf"rank is {rank}.*24 at most"):
            low_rank_correction(W, W_hat, rank)
    W_hat[2, 2] = math.inf
    with pytest.raises(DataError, match="NaN or infinity"):
        low_rank_correction(W, W_hat, 2)
