"""Scales, rounding and their inverse are compressed-tensors' own, bit for bit, in float32 and in bfloat16."""

from __future__ import annotations

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

from labkit.numerics import (
    E2M1,
    E4M3,
    INT4,
    INT8,
    Format,
    Granularity,
    dequantize,
    for_each_column,
    group_scales,
    quantize,
    quantize_dequantize,
    round_to_nearest,
    scale_for,
)
from tests.numerics.tensors import FINITE, STEADY, every_bfloat16, same_bits

STRATEGY: dict[Granularity, str] = {"per-tensor": "tensor", "per-channel": "channel", "per-token": "token"}
TYPE = {E4M3.name: "float", INT8.name: "int"}

both_formats = pytest.mark.parametrize("fmt", [E4M3, INT8], ids=lambda fmt: fmt.name)
all_granularities = pytest.mark.parametrize("granularity", list(STRATEGY))
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def reference(x: Tensor, fmt: Format, granularity: Granularity) -> tuple[QuantizationArgs, Tensor]:
    """compressed-tensors' arguments, and its scale by the code path that a checkpoint or an engine takes."""
    dynamic = granularity == "per-token"
    args = QuantizationArgs(num_bits=8, type=TYPE[fmt.name], strategy=STRATEGY[granularity], dynamic=dynamic)
    if dynamic:
        return args, compute_dynamic_scales_and_zp(x, args, torch.nn.Identity())[0]
    rows = x.reshape(1, -1) if granularity == "per-tensor" else x
    low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
    scale = calculate_qparams(low, high, args)[0]
    return args, scale.reshape(1) if granularity == "per-tensor" else scale


def assert_bit_exact(x: Tensor, fmt: Format, granularity: Granularity) -> None:
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


def shaped(x: Tensor, granularity: Granularity) -> Tensor:
    """A weight [rows, columns] stays; per-token wants an activation [batch, tokens, features]."""
    return x.unsqueeze(0) if granularity == "per-token" else x


@both_formats
@all_granularities
@both_dtypes
def test_scales_and_values_are_compressed_tensors_own_on_a_random_matrix(
    fmt: Format, granularity: Granularity, dtype: torch.dtype
) -> None:
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_bit_exact(shaped(x, granularity), fmt, granularity)


@both_formats
@all_granularities
@both_dtypes
def test_they_are_on_rows_of_zeros_outliers_and_the_ends_of_the_dtype(
    fmt: Format, granularity: Granularity, dtype: torch.dtype
) -> None:
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    info = torch.finfo(dtype)
    x[1] = 0.0
    x[2] *= info.tiny  # a row of subnormals and the smallest normals
    x[3] = info.smallest_normal * info.eps  # the smallest subnormal of all
    x[4, 7] = 300.0  # an outlier
    x[5, :2] = torch.tensor([info.max, info.min])
    x[6] = -0.0
    x[7] = x[7].abs()  # one sign only
    assert_bit_exact(shaped(x, granularity), fmt, granularity)
    if granularity != "per-tensor":
        for row in x:  # the top of the dtype does not shadow the other rows here either
            assert_bit_exact(shaped(row.reshape(1, -1), granularity), fmt, granularity)


@both_formats
@all_granularities
def test_they_are_for_every_bfloat16_number_under_ordinary_scales(fmt: Format, granularity: Granularity) -> None:
    args, _ = reference(shaped(torch.ones(1, 4), granularity), fmt, granularity)
    x = shaped(every_bfloat16().reshape(1, -1), granularity)
    for size in (0.0123, 1.0, 97.0):
        scale = torch.full((*x.shape[:-1], 1), size, dtype=torch.bfloat16)
        scale = scale.reshape(1) if granularity == "per-tensor" else scale
        assert same_bits(quantize(x, scale, fmt), ct_quantize(x, scale, None, args, dtype=fmt.dtype))


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
    assert_bit_exact(shaped(wide, granularity), fmt, granularity)
    same_size = (x.sign() * (x.abs().clamp(min=1e-30).log2() / 128 + 1) * 2.0**exponent).to(dtype)
    assert_bit_exact(shaped(same_size, granularity), fmt, granularity)


# ---- 4 bits, with scales for groups


@pytest.mark.parametrize("fmt", [INT4, E2M1, INT8, E4M3], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("group_size", [16, 32, 128])
@both_dtypes
def test_scales_and_values_of_groups_are_compressed_tensors_own(
    fmt: Format, group_size: int, dtype: torch.dtype
) -> None:
    W = torch.randn(48, 256, generator=torch.Generator().manual_seed(3)).to(dtype)
    W[1] = 0.0
    W[2, 7] = 300.0
    args = QuantizationArgs(
        num_bits=fmt.bits,
        type="float" if fmt.exponent_bits else "int",
        strategy="group",
        group_size=group_size,
    )
    grouped = W.reshape(48, -1, group_size)
    scales = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)[0]
    assert same_bits(group_scales(W, fmt, group_size), scales)
    ours = quantize_dequantize(W, for_each_column(scales, 256), fmt)
    assert torch.equal(ours, ct_fake_quantize(W, scales, torch.zeros_like(scales), args))


@both_dtypes
def test_e2m1_rounds_every_bfloat16_as_compressed_tensors_does(dtype: torch.dtype) -> None:
    args = QuantizationArgs(num_bits=4, type="float", strategy="tensor")
    x = every_bfloat16().to(dtype)
    one = torch.ones(1, dtype=dtype)
    assert torch.equal(quantize(x, one, E2M1), ct_quantize(x, one, None, args))
