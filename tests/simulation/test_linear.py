"""One simulated layer: its rounding is the numerics' own, its correction is as good as one merged into the weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import DataError
from labkit.numerics import E4M3, E5M2, INT8, Format, low_rank_correction, round_to_nearest
from labkit.simulation import SimulatedLinear, round_each_token
from tests.numerics.tensors import STEADY, every_bfloat16, same_bits

formats = pytest.mark.parametrize("fmt", [INT8, E4M3, E5M2], ids=lambda fmt: fmt.name)


@formats
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_rounding_by_torchs_cast_is_round_to_nearest_bit_for_bit(fmt: Format, dtype: torch.dtype) -> None:
    x = torch.randn(3, 50, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    x[0, 0] = 0.0
    x[0, 1] *= 1e-30
    x[0, 2, 5] = 1e4
    assert same_bits(round_each_token(x, fmt) + 0.0, round_to_nearest(x, fmt, "per-token") + 0.0)


@formats
def test_it_is_on_every_bfloat16_number(fmt: Format) -> None:
    x = every_bfloat16().reshape(-1, 64)
    assert same_bits(round_each_token(x, fmt) + 0.0, round_to_nearest(x, fmt, "per-token") + 0.0)


@formats
@STEADY
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=32))
def test_it_is_on_any_token(fmt: Format, numbers: list[float]) -> None:
    x = torch.tensor([numbers])
    assert torch.equal(round_each_token(x, fmt), round_to_nearest(x, fmt, "per-token"))


def test_a_layer_with_nothing_rounded_is_the_linear_layer_itself() -> None:
    linear = torch.nn.Linear(24, 16)
    x = torch.randn(2, 5, 24)
    assert torch.equal(SimulatedLinear(linear)(x), linear(x))


@pytest.mark.parametrize("bias", [True, False])
def test_activations_are_rounded_and_the_correction_added(bias: bool) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 16, bias=bias)
    simulated = SimulatedLinear(linear)
    simulated.activations = E4M3
    simulated.correction = low_rank_correction(torch.randn(16, 24), torch.randn(16, 24), 3)
    x = torch.randn(2, 5, 24)
    weight = linear.weight + simulated.correction.product()
    expected = torch.nn.functional.linear(round_to_nearest(x, E4M3, "per-token"), weight, linear.bias)
    torch.testing.assert_close(simulated(x), expected, rtol=1e-5, atol=1e-5)


def test_nan_in_an_activation_is_refused() -> None:
    simulated = SimulatedLinear(torch.nn.Linear(4, 4))
    simulated.activations = INT8
    with pytest.raises(DataError, match="NaN"):
        simulated(torch.tensor([[1.0, float("nan"), 0.0, 0.0]]))
