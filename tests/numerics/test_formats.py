"""The grids and the rounding against torch's own types, and what round-to-nearest promises."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import DataError, UsageError
from labkit.numerics import (
    E2M1,
    E3M0,
    E4M3,
    E5M2,
    FORMATS,
    INT4,
    INT8,
    Format,
    Granularity,
    quantize,
    quantize_dequantize,
    relative_error,
    round_to_grid,
    round_to_nearest,
    scale_for,
    sqnr_db,
)
from tests.numerics.tensors import FINITE, STEADY, every_bfloat16, same_bits

all_granularities = pytest.mark.parametrize("granularity", list(get_args(Granularity)))


# ---- the grids


@pytest.mark.parametrize(
    ("fmt", "dtype"), [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)], ids=["E4M3", "E5M2"]
)
def test_an_fp8_grid_holds_exactly_the_finite_numbers_of_torchs_type(fmt: Format, dtype: torch.dtype) -> None:
    every = torch.arange(256).to(torch.uint8).view(dtype).double()
    assert torch.equal(fmt.values(), every[every.isfinite()].unique())  # unique() sorts and joins +0 and -0
    info = torch.finfo(dtype)
    assert (fmt.min_value, fmt.max_value, fmt.min_normal) == (info.min, info.max, info.tiny)
    assert fmt.smallest_subnormal == every[every > 0].min()


def test_the_int8_grid_is_the_256_integers_of_the_type() -> None:
    assert INT8.values().tolist() == list(range(-128, 128))


def test_the_e2m1_grid_is_the_one_of_the_microscaling_standard() -> None:
    positive = [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    assert E2M1.values().tolist() == [*(-value for value in reversed(positive)), 0.0, *positive]


def test_the_other_4_bit_grids_have_as_many_codes_as_they_can() -> None:
    assert INT4.values().tolist() == list(range(-8, 8))
    positive = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]
    assert E3M0.values().tolist() == [*(-value for value in reversed(positive)), 0.0, *positive]


def test_dynamic_ranges_are_largest_over_smallest_positive_value() -> None:
    assert {fmt.name: fmt.dynamic_range for fmt in FORMATS} == {
        "E4M3": 448 * 2**9,
        "E5M2": 57344 * 2**16,
        "INT8": 127,
        "E2M1": 12,
        "INT4": 7,
        "INT3": 3,
        "INT2": 1,
        "E3M0": 64,
    }
    assert [round(fmt.dynamic_range_log2, 1) for fmt in FORMATS] == [17.8, 31.8, 7.0, 3.6, 2.8, 1.6, 0.0, 6.0]


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_the_dynamic_range_can_be_read_off_the_grid(fmt: Format) -> None:
    positive = fmt.values()[fmt.values() > 0]
    assert fmt.dynamic_range == float(positive.max() / positive.min())
    assert fmt.binades == len(positive.log2().floor().unique())


def test_the_quoted_figures_count_binades_for_floats_and_all_codes_for_int8() -> None:
    assert [fmt.quoted_range_log2 for fmt in (E4M3, E5M2, INT8)] == [18, 32, 8]
    assert len(INT8.values()) == 2**8
    assert INT8.binades == 7


# ---- rounding


@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=lambda fmt: fmt.name)
def test_rounding_agrees_with_torchs_cast_on_every_bfloat16_number(fmt: Format) -> None:
    x = every_bfloat16()
    assert fmt.dtype is not None
    assert same_bits(round_to_grid(x, fmt), x.clamp(fmt.min_value, fmt.max_value).to(fmt.dtype).to(x.dtype))


@pytest.mark.parametrize("fmt", [E4M3, E5M2], ids=lambda fmt: fmt.name)
@STEADY
@given(st.lists(FINITE, min_size=1, max_size=64))
def test_rounding_agrees_with_torchs_cast_on_any_float32(fmt: Format, numbers: list[float]) -> None:
    x = torch.tensor(numbers)
    assert fmt.dtype is not None
    assert same_bits(round_to_grid(x, fmt), x.clamp(fmt.min_value, fmt.max_value).to(fmt.dtype).float())


@pytest.mark.parametrize("fmt", [f for f in FORMATS if f.mantissa_bits], ids=lambda fmt: fmt.name)
def test_grid_points_round_to_themselves_and_midpoints_to_the_even_neighbor(fmt: Format) -> None:
    grid = fmt.values()
    assert torch.equal(round_to_grid(grid, fmt), grid)
    low, high = grid[:-1], grid[1:]
    # a neighbor pair differs in the last mantissa bit: the even one is the one whose index from zero is even
    index = torch.arange(len(grid)) - int((grid == 0).nonzero())
    even = torch.where(index[:-1] % 2 == 0, low, high)
    assert torch.equal(round_to_grid((low + high) / 2, fmt), even)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
@STEADY
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=32))
def test_rounding_finds_the_nearest_of_all_grid_points(fmt: Format, numbers: list[float]) -> None:
    x = torch.tensor(numbers)
    distance = (x.double().clamp(fmt.min_value, fmt.max_value)[:, None] - fmt.values()).abs()  # [numbers, grid]
    found = (x.double().clamp(fmt.min_value, fmt.max_value) - round_to_grid(x, fmt).double()).abs()
    assert torch.equal(found, distance.amin(dim=1))


def test_e3m0_has_no_even_neighbor_and_rounds_midpoints_away_from_zero() -> None:
    grid = E3M0.values()
    assert torch.equal(round_to_grid(grid, E3M0), grid)
    positive = grid[grid > 0]
    midpoints = (positive[:-1] + positive[1:]) / 2
    assert torch.equal(round_to_grid(midpoints, E3M0), positive[1:])
    assert torch.equal(round_to_grid(-midpoints, E3M0), -positive[1:])


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
@STEADY
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=32))
def test_rounding_is_monotone_symmetric_and_saturates(fmt: Format, numbers: list[float]) -> None:
    x = torch.tensor(numbers).sort().values
    rounded = round_to_grid(x, fmt)
    assert bool((rounded.diff() >= 0).all())
    inside = x.abs() < fmt.max_value  # INT8 and INT4 have one more number below zero than above
    assert torch.equal(round_to_grid(-x, fmt)[inside], -rounded[inside])
    assert bool((rounded[x >= fmt.max_value] == fmt.max_value).all())
    assert bool((rounded[x <= fmt.min_value] == fmt.min_value).all())


# ---- what RTN promises


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
@STEADY
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=64))
def test_no_value_moves_by_more_than_half_its_step(fmt: Format, numbers: list[float]) -> None:
    x = torch.tensor(numbers).double()
    scale = scale_for(x, fmt, "per-tensor")
    error = (x - round_to_nearest(x, fmt, "per-tensor")).abs() / scale  # in grid units
    scaled = (x / scale).abs()
    allowed = torch.tensor([fmt.step(value) / 2 if value else 0.0 for value in scaled.tolist()], dtype=torch.float64)
    # INT8's largest value lands on 127.5, half a step above its last point: still within half a step
    assert (error <= allowed * (1 + 1e-6)).all()


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_zeros_stay_zeros(fmt: Format) -> None:
    x = torch.zeros(3, 8)
    assert torch.equal(round_to_nearest(x, fmt, "per-channel"), x)
    assert (scale_for(x, fmt, "per-channel") == torch.finfo(torch.float32).eps).all()


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_quantizing_twice_with_one_scale_changes_nothing_more(fmt: Format) -> None:
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(2))
    scale = scale_for(x, fmt, "per-channel")
    once = quantize_dequantize(x, scale, fmt)
    assert torch.equal(quantize_dequantize(once, scale, fmt), once)


def test_a_scale_for_each_row_keeps_one_large_row_from_spoiling_the_others_above_all_in_int8() -> None:
    x = torch.randn(32, 128, generator=torch.Generator().manual_seed(3))
    x[0] *= 1000
    others = {
        (fmt.name, granularity): relative_error(x[1:], round_to_nearest(x, fmt, granularity)[1:])
        for fmt in (E4M3, INT8)
        for granularity in ("per-tensor", "per-channel")
    }
    assert others["INT8", "per-tensor"] > 0.9  # all but gone
    assert others["INT8", "per-channel"] < 0.01
    assert others["E4M3", "per-tensor"] < 0.06
    assert others["E4M3", "per-channel"] < 0.03
    assert others["INT8", "per-channel"] < others["E4M3", "per-channel"]  # with nothing to spread for, INT8 is finer


def test_scales_have_one_entry_for_each_group() -> None:
    x = torch.ones(2, 5, 8)
    assert scale_for(x[0], E4M3, "per-tensor").shape == (1,)
    assert scale_for(x[0], E4M3, "per-channel").shape == (5, 1)
    assert scale_for(x, INT8, "per-token").shape == (2, 5, 1)


def test_quantized_values_are_stored_in_the_formats_type() -> None:
    x = torch.linspace(-1, 1, 8, dtype=torch.bfloat16).reshape(2, 4)
    for fmt in (E4M3, E5M2, INT8):
        assert quantize(x, scale_for(x, fmt, "per-channel"), fmt).dtype == fmt.dtype
    assert quantize(x, scale_for(x, E2M1, "per-channel"), E2M1).dtype == torch.bfloat16


# ---- errors and measures


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@all_granularities
def test_nan_and_infinity_are_refused_with_what_to_look_for(bad: float, granularity: Granularity) -> None:
    x = torch.ones(4, 4)
    x[1, 2] = bad
    with pytest.raises(DataError, match="NaN or infinity") as error:
        scale_for(x, E4M3, granularity)
    assert "bfloat16" in error.value.fix


def test_an_unknown_granularity_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match="per-tensor, per-channel, per-token"):
        scale_for(torch.ones(2, 2), E4M3, "per-row")  # type: ignore[arg-type]


def test_channels_of_something_that_is_not_a_matrix_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\[2, 3, 4\]"):
        scale_for(torch.ones(2, 3, 4), E4M3, "per-channel")


def test_relative_error_and_sqnr_measure_the_same_thing() -> None:
    x = torch.tensor([3.0, 4.0])
    x_hat = torch.tensor([3.0, 4.5])
    assert relative_error(x, x_hat) == pytest.approx(0.1)
    assert sqnr_db(x, x_hat) == pytest.approx(20.0)
    assert (relative_error(x, x), sqnr_db(x, x)) == (0.0, math.inf)
    assert relative_error(torch.zeros(2), x) == math.inf
    assert relative_error(x * 5e37, x_hat * 5e37) == pytest.approx(0.1, rel=1e-4)  # no overflow on the way
