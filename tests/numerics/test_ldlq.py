"""LDLQ is GPTQ: the same grid points, from a factor of H itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from labkit.numerics import (
    INT4,
    INT8,
    Format,
    dequantize,
    gptq,
    hessian,
    ldlq,
    quantize_dequantize,
    scale_for,
    upper_factor,
)


def problem(rows: int = 48, d: int = 200) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(6 * d, d) @ (torch.eye(d) + 0.3 * torch.randn(d, d))
    return torch.randn(rows, d), hessian(x)


def damped(H: Tensor) -> Tensor:
    return H + 0.01 * H.diagonal().mean() * torch.eye(len(H))


def by_ldlq(W: Tensor, H: Tensor, fmt: Format, block_size: int = 128) -> tuple[Tensor, Tensor]:
    scale = scale_for(W, fmt, "per-channel")
    R = upper_factor(damped(H))
    assert R is not None
    return ldlq(W, R, lambda w, _: quantize_dequantize(w[:, None], scale, fmt)[:, 0], block_size)


@pytest.mark.parametrize("fmt", [INT8, INT4])
def test_it_chooses_gptqs_grid_points(fmt: Format) -> None:
    W, H = problem()
    scale = scale_for(W, fmt, "per-channel")
    found, _ = by_ldlq(W, H, fmt)
    assert (found == dequantize(gptq(W, H, scale, fmt), scale)).float().mean() > 0.999


def test_it_says_what_the_rounding_cost() -> None:
    W, H = problem()
    found, lost = by_ldlq(W, H, INT4)
    error = (W - found).double()
    torch.testing.assert_close(lost.double(), ((error @ damped(H).double()) * error).sum(1), rtol=1e-4, atol=0)
    nearest = W - quantize_dequantize(W, scale_for(W, INT4, "per-channel"), INT4)
    assert lost.sum() < 0.8 * ((nearest @ damped(H)) * nearest).sum()


@pytest.mark.parametrize("block_size", [1, 7, 199, 200, 512])
def test_the_block_is_a_matter_of_speed_only(block_size: int) -> None:
    W, H = problem()
    assert (by_ldlq(W, H, INT8, block_size)[0] == by_ldlq(W, H, INT8)[0]).float().mean() > 0.999


@pytest.mark.parametrize("d", [1, 2, 200, 301, 600])
def test_the_factor_is_upper_and_its_product_is_h(d: int) -> None:
    _, H = problem(d=d)
    R = upper_factor(H)
    assert R is not None
    assert torch.equal(R, R.triu())
    torch.testing.assert_close(R @ R.T, H, rtol=1e-4, atol=1e-3)
    again = upper_factor(H, in_place=True)
    assert again is not None
    assert torch.equal(again, R)
    assert again.untyped_storage().data_ptr() == H.untyped_storage().data_ptr()


@pytest.mark.parametrize("H", [-torch.eye(5), torch.full((5, 5), torch.nan), torch.zeros(5, 5)])
def test_a_matrix_that_is_not_positive_definite_has_no_factor(H: Tensor) -> None:
    assert upper_factor(H) is None
