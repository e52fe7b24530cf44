"""Scales that are powers of two, and the cast that they make cheap."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from labkit.errors import DataError, UsageError
from labkit.numerics import E2M1, E4M3, cast_to_fp8, group_scales, m1, m2
from labkit.numerics.pow2 import ExponentRounding, Reading
from tests.numerics.tensors import STEADY

ZERO_GROUP = torch.finfo(torch.float32).eps  # what `scale_for` gives zeros; M2 takes it for no real scale
positive = st.floats(2.0**-30, 2.0**30, width=32).filter(lambda scale: scale != ZERO_GROUP)
roundings = st.sampled_from(["ceil", "nearest"])
readings = st.sampled_from(["S", "1/S"])


def is_power_of_two(x: Tensor) -> bool:
    return bool((torch.frexp(x.double())[0] == 0.5).all())


def allowed(rounding: ExponentRounding, grows: bool) -> tuple[float, float]:
    """Between what a scale may be multiplied with: half a power of two to either side, or one up or down."""
    if rounding == "nearest":
        return math.sqrt(0.5) - 1e-6, math.sqrt(2) + 1e-6
    return (1.0, 2.0) if grows else (0.5, 1.0)


@STEADY
@given(st.lists(positive, min_size=1, max_size=32), roundings, readings)
def test_m1_gives_powers_of_two_next_to_each_scale(
    numbers: list[float], rounding: ExponentRounding, reading: Reading
) -> None:
    S = torch.tensor(numbers)
    found = m1(S, rounding, reading)
    assert is_power_of_two(found)
    ratio = found.double() / S.double()
    low, high = allowed(rounding, grows=reading == "S")
    assert bool((ratio >= low).all() and (ratio <= high).all())


def test_m1_leaves_powers_of_two_alone_and_takes_the_next_one_above_all_others() -> None:
    S = torch.tensor([1.0, 0.25, 2.0**-20, 1.0000001, 3.0, 0.26])
    assert m1(S).tolist() == [1.0, 0.25, 2.0**-20, 2.0, 4.0, 0.5]


@STEADY
@given(st.lists(positive, min_size=8, max_size=8), roundings, readings)
def test_m2_keeps_one_scale_of_a_block_and_makes_all_ratios_powers_of_two(
    numbers: list[float], rounding: ExponentRounding, reading: Reading
) -> None:
    S = torch.tensor(numbers).reshape(4, 2)
    found = m2(S, rows=4, rounding=rounding, reading=reading)
    kept = S.amax(0) if reading == "S" else S.amin(0)  # of S, or of 1/S
    assert bool((found == kept).any(0).all())
    assert is_power_of_two(found.double() / kept.double())
    ratio = found.double() / S.double()
    low, high = allowed(rounding, grows=reading == "1/S")  # of S itself: scales shrink, and values clip
    assert bool((ratio >= low).all() and (ratio <= high).all())


def test_blocks_of_rows_are_constrained_by_themselves() -> None:
    S = torch.tensor([[3.0], [1.0], [5.0], [1.0]])
    assert torch.equal(m2(S, rows=2), torch.cat([m2(S[:2], rows=2), m2(S[2:], rows=2)]))
    assert m2(S, rows=2, reading="S").flatten().tolist() == [3.0, 0.75, 5.0, 0.625]
    assert m2(S, rows=2, reading="1/S").flatten().tolist() == [4.0, 1.0, 8.0, 1.0]


@pytest.mark.parametrize("reading", ["S", "1/S"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_row_of_zeros_does_not_move_the_scales_of_its_block(reading: Reading, dtype: torch.dtype) -> None:
    W = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).to(dtype) / 50
    W[2] = 0.0
    living = [0, 1, 3]
    S = group_scales(W, E2M1, 16)
    assert torch.equal(m2(S, 4, reading=reading)[living], m2(S[living], 3, reading=reading))
    assert torch.equal(
        m2(group_scales(torch.zeros_like(W), E2M1, 16), 4, reading=reading), group_scales(W * 0, E2M1, 16)
    )


def test_the_constraints_keep_the_dtype() -> None:
    S = torch.rand(8, 2, generator=torch.Generator().manual_seed(0)).bfloat16() + 0.1
    assert m1(S).dtype == m2(S, 4).dtype == torch.bfloat16


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_scales_without_a_logarithm_are_refused(bad: float) -> None:
    for constrained in (m1, lambda S: m2(S, 2)):
        with pytest.raises(DataError, match="zero, negative, NaN or infinite"):
            constrained(torch.tensor([[1.0], [bad]]))


@pytest.mark.parametrize("rows", [0, 3, 8])
def test_blocks_that_do_not_divide_the_rows_are_refused(rows: int) -> None:
    with pytest.raises(UsageError, match=f"Blocks of {rows} rows"):
        m2(torch.ones(4, 2), rows)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UsageError, match="rounding 'floor'"):
        m1(torch.ones(2), "floor")  # type: ignore[arg-type]
    for constrained in (lambda S: m1(S, reading="scale"), lambda S: m2(S, 2, reading="scale")):  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="reading 'scale'"):
            constrained(torch.ones(2, 1))


# ---- the cast


def test_every_fp4_number_is_one_of_fp8() -> None:
    grid = E2M1.values().float()
    assert torch.equal(grid.to(torch.float8_e4m3fn).float(), grid)


def test_adding_to_the_exponent_is_multiplying_for_every_code_and_exponent() -> None:
    q = E2M1.values().float()[:, None]  # [15, 1]
    n = torch.arange(-20, 21, dtype=torch.int32)[None]  # [1, 41]
    found = cast_to_fp8(q, n)
    product = q.double() * 2.0 ** n.double()
    wanted = product.clamp(E4M3.min_value, E4M3.max_value).float().to(torch.float8_e4m3fn)
    assert torch.equal(found.codes.view(torch.uint8), wanted.view(torch.uint8))
    normal = (product.abs() >= E4M3.min_normal) & (product.abs() <= E4M3.max_value)
    assert torch.equal(found.exceptions, ~normal & (q != 0).expand_as(normal))


def test_negative_zero_keeps_its_sign_bit() -> None:
    found = cast_to_fp8(torch.tensor([-0.0]), torch.tensor([3], dtype=torch.int32))
    assert found.codes.view(torch.uint8).tolist() == [0x80]
    assert not found.exceptions.any()
