"""Group-wise scales: each group by itself, and only groups that fit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import DataError, UsageError
from labkit.numerics import (
    E2M1,
    INT4,
    fitting_group,
    for_each_column,
    group_scales,
    quantize_dequantize,
    relative_error,
    round_to_nearest,
)
from tests.numerics.tensors import STEADY


@STEADY
@given(st.integers(1, 20_000), st.integers(1, 512))
def test_a_fitting_group_divides_and_no_larger_one_up_to_the_wanted_does(columns: int, wanted: int) -> None:
    found = fitting_group(columns, wanted)
    assert columns % found == 0
    assert not [size for size in range(found + 1, min(wanted, columns) + 1) if columns % size == 0]


@pytest.mark.parametrize("group_size", [1, 4, 32])
def test_a_groups_scale_is_that_of_the_group_alone(group_size: int) -> None:
    W = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    W_hat = quantize_dequantize(W, for_each_column(group_scales(W, E2M1, group_size), 32), E2M1)
    for start in range(0, 32, group_size):
        alone = W[:, start : start + group_size]
        assert torch.equal(W_hat[:, start : start + group_size], round_to_nearest(alone, E2M1, "per-channel"))


def test_one_group_a_row_is_per_channel() -> None:
    W = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    scales = group_scales(W, INT4, 24)
    assert scales.shape == (5, 1)
    assert torch.equal(
        quantize_dequantize(W, for_each_column(scales, 24), INT4), round_to_nearest(W, INT4, "per-channel")
    )


def test_smaller_groups_keep_an_outliers_harm_to_fewer_weights() -> None:
    W = torch.randn(64, 256, generator=torch.Generator().manual_seed(2))
    W[:, 0] *= 50
    errors = [
        relative_error(
            W[:, 128:], quantize_dequantize(W, for_each_column(group_scales(W, E2M1, g), 256), E2M1)[:, 128:]
        )
        for g in (256, 128)
    ]
    assert errors[1] < errors[0] / 3


def test_groups_of_zeros_stay_zeros() -> None:
    W = torch.zeros(3, 8)
    W[:, 4:] = 1.0
    W_hat = quantize_dequantize(W, for_each_column(group_scales(W, E2M1, 4), 8), E2M1)
    assert torch.equal(W_hat, W)


@pytest.mark.parametrize("group_size", [0, -4, 7, 64])
def test_a_group_size_that_does_not_divide_is_refused_by_name(group_size: int) -> None:
    with pytest.raises(UsageError, match=rf"Groups of {group_size} columns.*\[4, 32\]"):
        group_scales(torch.ones(4, 32), E2M1, group_size)


@pytest.mark.parametrize(("columns", "wanted"), [(0, 4), (4, 0), (8, -1)])
def test_no_group_fits_nothing(columns: int, wanted: int) -> None:
    with pytest.raises(UsageError, match="positive"):
        fitting_group(columns, wanted)


def test_scales_of_another_layer_are_refused() -> None:
    with pytest.raises(UsageError, match="3 groups can't share 32 columns"):
        for_each_column(torch.ones(4, 3), 32)


def test_nan_in_a_weight_is_refused() -> None:
    W = torch.ones(4, 32)
    W[1, 3] = float("nan")
    with pytest.raises(DataError, match="NaN"):
        group_scales(W, E2M1, 8)
