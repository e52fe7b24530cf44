"""LoRC: the best correction of its rank, larger ranks never worse, exact at the full one."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labkit.errors import DataError, UsageError
from labkit.numerics import E2M1, low_rank_correction, round_to_nearest
from tests.numerics.tensors import STEADY

shapes = st.tuples(st.integers(1, 24), st.integers(1, 24))


def rounded(shape: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return W, round_to_nearest(W, E2M1, "per-channel")


def left(W: Tensor, W_hat: Tensor, rank: int) -> float:
    return float(torch.linalg.vector_norm(W - W_hat - low_rank_correction(W, W_hat, rank).product()))


@STEADY
@given(shapes, st.integers(0, 99))
def test_the_error_never_grows_with_the_rank_and_is_gone_at_the_full_one(shape: tuple[int, int], seed: int) -> None:
    W, W_hat = rounded(shape, seed)
    before = float(torch.linalg.vector_norm(W - W_hat))
    errors = [before, *(left(W, W_hat, rank) for rank in range(1, min(shape) + 1))]
    assert all(b <= a + 1e-5 * before for a, b in itertools.pairwise(errors))
    assert errors[-1] <= 1e-4 * before + 1e-6


@STEADY
@given(shapes, st.integers(0, 99), st.data())
def test_it_is_the_truncated_singular_value_decomposition(
    shape: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    W, W_hat = rounded(shape, seed)
    rank = data.draw(st.integers(1, min(shape)))
    singular = torch.linalg.svdvals((W - W_hat).double())
    best = float(singular[rank:].square().sum().sqrt())  # Eckart and Young
    assert left(W, W_hat, rank) == pytest.approx(best, rel=1e-3, abs=1e-4)


def test_both_factors_hold_the_root_of_the_singular_values() -> None:
    W, W_hat = rounded((40, 24), 3)
    found = low_rank_correction(W, W_hat, 5)
    singular = torch.linalg.svdvals(W - W_hat)[:5]
    assert torch.allclose(found.U.square().sum(0), singular, rtol=1e-3)
    assert torch.allclose(found.V.square().sum(1), singular, rtol=1e-3)
    assert torch.allclose(found.singular_values, singular, rtol=1e-3)
    assert torch.allclose(found.U.T @ found.U, torch.diag(singular), atol=1e-3)


def test_a_smaller_rank_of_a_correction_is_the_correction_of_that_rank() -> None:
    W, W_hat = rounded((30, 20), 4)
    whole = low_rank_correction(W, W_hat, 12)
    assert torch.allclose(whole.at(3).product(), low_rank_correction(W, W_hat, 3).product(), atol=1e-5)
    with pytest.raises(UsageError, match="rank is 13, and this correction has 12"):
        whole.at(13)


def test_an_error_of_low_rank_is_taken_back_whole() -> None:
    W = torch.randn(32, 48, generator=torch.Generator().manual_seed(5))
    lost = torch.outer(torch.arange(32.0), torch.ones(48)) / 100
    assert torch.allclose(W - lost + low_rank_correction(W, W - lost, 1).product(), W, atol=1e-5)


def test_nothing_lost_needs_nothing() -> None:
    W = torch.ones(6, 4)
    found = low_rank_correction(W, W, 2)
    assert torch.equal(found.product(), torch.zeros(6, 4))


def test_bytes_count_both_factors_in_16_bits() -> None:
    W, W_hat = rounded((40, 24), 6)
    assert low_rank_correction(W, W_hat, 8).bytes == 2 * 8 * (40 + 24)


@pytest.mark.parametrize("rank", [0, -1, 25])
def test_a_rank_that_the_matrix_has_not_is_refused(rank: int) -> None:
    W, W_hat = rounded((40, 24), 7)
    with pytest.raises(UsageError, match=rf"rank is {rank}.*24 at most"):
        low_rank_correction(W, W_hat, rank)


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(UsageError, match=r"W is \[4, 4\] and Ŵ is \[4, 3\]"):
        low_rank_correction(torch.ones(4, 4), torch.ones(4, 3), 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(bad: float) -> None:
    W, W_hat = rounded((8, 8), 8)
    W_hat[2, 2] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        low_rank_correction(W, W_hat, 2)
