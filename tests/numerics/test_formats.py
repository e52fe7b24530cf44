"""Grids, rounding and scales: against torch's own types, and bit for bit against compressed-tensors."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize as ct_dequantize
from compressed_tensors.quantization.lifecycle.forward import fake_quantize as ct_fake_quantize
from compressed_tensors.quantization.lifecycle.forward import quantize as ct_quantize
from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labkit.errors import DataError, UsageError
from labkit.numerics import (
    E2M1,
    E3M0,
    E4M3,
    E5M2,
    FORMATS,
    INT4,
    INT8,
    ExponentRounding,
    Format,
    Granularity,
    Reading,
    cast_to_fp8,
    dequantize,
    fitting_group,
    for_each_column,
    group_scales,
    m1,
    m2,
    quantize,
    quantize_dequantize,
    relative_error,
    round_to_nearest,
    scale_for,
)
from labkit.numerics.formats import round_to_grid
from tests.numerics.support import STEADY, both_dtypes, each, normal

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
SAME_BITS_AS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float8_e4m3fn: torch.uint8}
STRATEGY: dict[Granularity, str] = {"per-tensor": "tensor", "per-channel": "channel", "per-token": "token"}

each_format = each("fmt", *FORMATS)
each_fp8 = each("fmt", E4M3, E5M2)
both_formats = each("fmt", E4M3, INT8)
all_granularities = pytest.mark.parametrize("granularity", get_args(Granularity))


def every_bfloat16() -> Tensor:
    """All finite bfloat16 numbers, [65280]."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    return every[every.isfinite()]


def same_bits(a: Tensor, b: Tensor) -> bool:
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    bits = SAME_BITS_AS.get(a.dtype, a.dtype)
    return torch.equal(a.contiguous().view(bits), b.contiguous().view(bits))


# ---- the grids


@each_fp8
def test_an_fp8_grid_holds_exactly_the_finite_numbers_of_torchs_type(fmt: Format) -> None:
    every = torch.arange(256).to(torch.uint8).view(fmt.dtype).double()
    assert torch.equal(fmt.values(), every[every.isfinite()].unique())  # unique() sorts and joins +0 and -0
    assert (fmt.min_value, fmt.max_value) == (torch.finfo(fmt.dtype).min, torch.finfo(fmt.dtype).max)
    assert fmt.smallest_subnormal == every[every > 0].min()


def test_the_other_grids_are_those_of_their_standards_or_have_as_many_codes_as_they_can() -> None:
    for fmt, low, high in ((INT8, -128, 127), (INT4, -8, 7)):
        assert fmt.values().tolist() == list(range(low, high + 1))
    for fmt, positive in ((E2M1, [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]), (E3M0, [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0])):
        assert fmt.values().tolist() == [*(-value for value in reversed(positive)), 0.0, *positive]


@each_format
def test_the_dynamic_range_can_be_read_off_the_grid(fmt: Format) -> None:
    positive = fmt.values()[fmt.values() > 0]
    assert fmt.binades == len(positive.log2().floor().unique())
    # the quoted figure counts binades for floats and all codes for integers
    assert fmt.quoted_range_log2 == (fmt.binades if fmt.exponent_bits else math.log2(len(fmt.values())))
    assert fmt.dynamic_range_log2 == pytest.approx(float((positive.max() / positive.min()).log2()))


# ---- rounding


@each_fp8
def test_rounding_agrees_with_torchs_cast_on_every_bfloat16_number(fmt: Format) -> None:
    assert fmt.dtype
    x = every_bfloat16()
    assert same_bits(round_to_grid(x, fmt), x.clamp(fmt.min_value, fmt.max_value).to(fmt.dtype).to(x.dtype))


@each_format
def test_grid_points_stay_and_midpoints_go_to_the_even_neighbor_in_e3m0_away_from_zero(fmt: Format) -> None:
    grid = fmt.values()
    assert torch.equal(round_to_grid(grid, fmt), grid)
    low, high = grid[:-1], grid[1:]
    # a neighbor pair differs in the last mantissa bit: the even one is the one whose index from zero is even
    index = torch.arange(len(grid)) - int((grid == 0).nonzero())
    wanted = torch.where(index[:-1] % 2 == 0, low, high)
    between = slice(None)
    if fmt is E3M0:  # without a mantissa there is no even neighbor
        wanted, between = torch.where(low > 0, high, low), (low != 0) & (high != 0)
    assert torch.equal(round_to_grid((low + high) / 2, fmt)[between], wanted[between])


@each_format
@STEADY
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=32))
def test_rounding_finds_the_nearest_of_all_grid_points_and_saturates(fmt: Format, values: list[float]) -> None:
    x = torch.tensor(values)
    clamped = x.double().clamp(fmt.min_value, fmt.max_value)
    distance = (clamped[:, None] - fmt.values()).abs()  # [numbers, grid]
    assert torch.equal((clamped - round_to_grid(x, fmt).double()).abs(), distance.amin(dim=1))


@STEADY
@given(st.integers(1, 20_000), st.integers(1, 512))
def test_a_fitting_group_divides_and_no_larger_one_up_to_the_wanted_does(columns: int, wanted: int) -> None:
    found = fitting_group(columns, wanted)
    assert columns % found == 0
    assert not [size for size in range(found + 1, min(wanted, columns) + 1) if columns % size == 0]


def test_the_relative_error_is_the_norm_of_the_difference_over_the_norm() -> None:
    x, x_hat = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])
    assert relative_error(x, x_hat) == pytest.approx(0.1)
    assert relative_error(x, x) == relative_error(x * 0, x * 0) == 0.0
    assert relative_error(torch.zeros(2), x) == math.inf
    assert relative_error(x * 5e37, x_hat * 5e37) == pytest.approx(0.1, rel=1e-4)  # no overflow on the way


# ---- against compressed-tensors


def arguments(fmt: Format, strategy: str, **more: int | bool) -> QuantizationArgs:
    return QuantizationArgs(num_bits=fmt.bits, type="float" if fmt.exponent_bits else "int", strategy=strategy, **more)


def reference(x: Tensor, fmt: Format, granularity: Granularity) -> tuple[QuantizationArgs, Tensor]:
    """compressed-tensors' arguments, and its scale by the code path that a checkpoint or an engine takes."""
    args = arguments(fmt, STRATEGY[granularity], dynamic=granularity == "per-token")
    if args.dynamic:
        return args, compute_dynamic_scales_and_zp(x, args, torch.nn.Identity())[0]
    rows = x.reshape(1, -1) if granularity == "per-tensor" else x
    scale = calculate_qparams(rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True), args)[0]
    return args, scale.reshape(1) if granularity == "per-tensor" else scale


def assert_bit_exact(x: Tensor, fmt: Format, granularity: Granularity) -> None:
    """x: a weight [rows, columns], seen as an activation [1, tokens, features] for per-token scales."""
    x = x.unsqueeze(0) if granularity == "per-token" else x
    args, scale = reference(x, fmt, granularity)
    assert same_bits(scale_for(x, fmt, granularity), scale)
    q, x_hat = quantize(x, scale, fmt), quantize_dequantize(x, scale, fmt)
    assert same_bits(q, ct_quantize(x, scale, None, args, dtype=fmt.dtype))
    assert same_bits(dequantize(q, scale), ct_dequantize(q, scale, None, args))
    fake = ct_fake_quantize(x, scale, None, args)
    # Integers have no -0, which a fake-quantized float tensor keeps; adding 0.0 makes it +0.
    assert same_bits(x_hat, fake) if fmt is E4M3 else same_bits(x_hat + 0.0, fake + 0.0)
    # A symmetric scheme carries a zero point of 0 along, which turns -0 in x into +0: equal, not the same bits.
    assert torch.equal(round_to_nearest(x, fmt, granularity), ct_fake_quantize(x, scale, torch.zeros_like(scale), args))


@both_formats
@all_granularities
@both_dtypes
def test_scales_and_values_are_compressed_tensors_own_on_a_matrix_with_zeros_outliers_and_the_ends_of_the_dtype(
    fmt: Format, granularity: Granularity, dtype: torch.dtype
) -> None:
    x, info = normal(8, 64, seed=1).to(dtype), torch.finfo(dtype)
    assert_bit_exact(x, fmt, granularity)
    x[1] = 0.0
    x[2] *= info.tiny  # a row of subnormals and the smallest normals
    x[3] = info.smallest_normal * info.eps  # the smallest subnormal of all
    x[4, 7] = 300.0  # an outlier
    x[5, :2] = torch.tensor([info.max, info.min])
    x[6] = -0.0
    x[7] = x[7].abs()  # one sign only
    assert_bit_exact(x, fmt, granularity)


@both_formats
@all_granularities
@both_dtypes
@STEADY
@given(
    numbers=st.lists(st.lists(FINITE, min_size=6, max_size=6), min_size=1, max_size=4),
    exponent=st.integers(-130, 60),
)
def test_they_are_on_any_matrix(
    fmt: Format, granularity: Granularity, dtype: torch.dtype, numbers: list[list[float]], exponent: int
) -> None:
    x = torch.tensor(numbers)
    wide = x.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max).to(dtype)
    assert_bit_exact(wide, fmt, granularity)
    same_size = (x.sign() * (x.abs().clamp(min=1e-30).log2() / 128 + 1) * 2.0**exponent).to(dtype)
    assert_bit_exact(same_size, fmt, granularity)


@each("fmt", E4M3, INT8, E2M1)
@pytest.mark.parametrize("size", [0.0123, 1.0, 97.0])
def test_every_bfloat16_number_is_rounded_as_compressed_tensors_does(fmt: Format, size: float) -> None:
    scale = torch.full((1,), size, dtype=torch.bfloat16)
    theirs = ct_quantize(every_bfloat16(), scale, None, arguments(fmt, "tensor"), dtype=fmt.dtype)
    ours = quantize(every_bfloat16(), scale, fmt)
    assert same_bits(ours, theirs) if fmt.dtype else torch.equal(ours, theirs)


@each("fmt", INT4, E2M1, INT8, E4M3)
@pytest.mark.parametrize("group_size", [16, 32, 128])
@both_dtypes
def test_scales_and_values_of_groups_are_compressed_tensors_own(
    fmt: Format, group_size: int, dtype: torch.dtype
) -> None:
    W = normal(48, 256, seed=3).to(dtype)
    W[1] = 0.0
    W[2, 7] = 300.0
    args = arguments(fmt, "group", group_size=group_size)
    grouped = W.reshape(48, -1, group_size)
    scales = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)[0]
    assert same_bits(group_scales(W, fmt, group_size), scales)
    ours = quantize_dequantize(W, for_each_column(scales, 256), fmt)
    assert torch.equal(ours, ct_fake_quantize(W, scales, torch.zeros_like(scales), args))


# ---- powers of two

ZERO_GROUP = torch.finfo(torch.float32).eps  # what `scale_for` gives zeros; M2 takes it for no real scale
positive = st.floats(2.0**-30, 2.0**30, width=32).filter(lambda scale: scale != ZERO_GROUP)
roundings = st.sampled_from(get_args(ExponentRounding))
readings = st.sampled_from(get_args(Reading))


@STEADY
@given(st.lists(positive, min_size=8, max_size=8), roundings, readings)
def test_m1_gives_powers_of_two_and_m2_powers_of_two_times_one_scale_of_the_block_next_to_each_scale(
    numbers: list[float], rounding: ExponentRounding, reading: Reading
) -> None:
    S = torch.tensor(numbers).reshape(4, 2)
    of_block = S.amax(0) if reading == "S" else S.amin(0)  # of S, or of 1/S
    by_m1, by_m2 = m1(S, rounding, reading), m2(S, rows=4, rounding=rounding, reading=reading)
    assert bool((by_m2 == of_block).any(0).all())
    for found, kept, grows in ((by_m1, torch.ones(2), reading == "S"), (by_m2, of_block, reading == "1/S")):
        assert bool((torch.frexp(found.double() / kept.double())[0] == 0.5).all()), "a power of two"
        low, high = (1.0, 2.0) if grows else (0.5, 1.0)
        if rounding == "nearest":
            low, high = math.sqrt(0.5) - 1e-6, math.sqrt(2) + 1e-6
        ratio = found.double() / S.double()
        assert bool((ratio >= low).all() and (ratio <= high).all())


def test_known_scales_are_constrained_as_by_hand_and_keep_their_dtype() -> None:
    S = torch.tensor([1.0, 0.25, 2.0**-20, 1.0000001, 3.0, 0.26])
    assert m1(S).tolist() == [1.0, 0.25, 2.0**-20, 2.0, 4.0, 0.5]
    S = torch.tensor([[3.0], [1.0], [5.0], [1.0]])  # blocks of rows by themselves
    assert m2(S, rows=2, reading="S").flatten().tolist() == [3.0, 0.75, 5.0, 0.625]
    assert m2(S, rows=2, reading="1/S").flatten().tolist() == [4.0, 1.0, 8.0, 1.0]
    assert m1(S.bfloat16()).dtype == m2(S.bfloat16(), 4).dtype == torch.bfloat16


@pytest.mark.parametrize("reading", get_args(Reading))
@both_dtypes
def test_a_row_of_zeros_does_not_move_the_scales_of_its_block(reading: Reading, dtype: torch.dtype) -> None:
    W = normal(4, 32).to(dtype) / 50
    W[2] = 0.0
    living, S = [0, 1, 3], group_scales(W, E2M1, 16)
    assert torch.equal(m2(S, 4, reading=reading)[living], m2(S[living], 3, reading=reading))
    nothing = group_scales(torch.zeros_like(W), E2M1, 16)
    assert torch.equal(m2(nothing, 4, reading=reading), nothing)


def test_adding_to_the_exponent_is_multiplying_for_every_code_and_exponent() -> None:
    q = E2M1.values().float()[:, None]  # [15, 1]
    assert torch.equal(q.to(torch.float8_e4m3fn).float(), q), "every FP4 number is one of FP8"
    n = torch.arange(-20, 21, dtype=torch.int32)[None]  # [1, 41]
    found = cast_to_fp8(q, n)
    product = q.double() * 2.0 ** n.double()
    wanted = product.clamp(E4M3.min_value, E4M3.max_value).float().to(torch.float8_e4m3fn)
    assert torch.equal(found.codes.view(torch.uint8), wanted.view(torch.uint8))
    normal_number = (product.abs() >= torch.finfo(torch.float8_e4m3fn).tiny) & (product.abs() <= E4M3.max_value)
    assert torch.equal(found.exceptions, ~normal_number & (q != 0))
    zero = cast_to_fp8(torch.tensor([-0.0]), torch.tensor([3], dtype=torch.int32))
    assert (zero.codes.view(torch.uint8).tolist(), zero.exceptions.tolist()) == ([0x80], [False]), "it keeps its sign"


# ---- what can't be


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@all_granularities
def test_nan_and_infinity_are_refused_with_what_to_look_for(bad: float, granularity: Granularity) -> None:
    x = torch.ones(4, 4)
    x[1, 2] = bad
    with pytest.raises(DataError, match=r"NaN or infinity[\s\S]*bfloat16"):
        scale_for(x, E4M3, granularity)


def test_what_does_not_fit_is_refused_by_name() -> None:
    refused = {
        "per-tensor, per-channel, per-token": lambda: scale_for(torch.ones(2, 2), E4M3, "per-row"),  # type: ignore[arg-type]
        r"\[2, 3, 4\]": lambda: scale_for(torch.ones(2, 3, 4), E4M3, "per-channel"),
        "two positive numbers": lambda: fitting_group(8, -1),
        "rounding 'floor'": lambda: m1(torch.ones(2, 1), "floor"),  # type: ignore[arg-type]
        "reading 'scale'": lambda: m2(torch.ones(2, 1), 2, "ceil", "scale"),  # type: ignore[arg-type]
    }
    for size in (0, 7, 64):
        refused[rf"Groups of {size} columns.*\[4, 32\]"] = lambda size=size: group_scales(torch.ones(4, 32), E2M1, size)
        refused[f"Blocks of {size} rows"] = lambda size=size: m2(torch.ones(4, 2), size)
    for says, call in refused.items():
        with pytest.raises(UsageError, match=says):
            call()
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(DataError, match="zero, negative, NaN or infinite"):
            m1(torch.tensor([1.0, bad]))
