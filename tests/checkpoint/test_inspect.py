"""Inspection: what the files really hold, where the bytes are, and where config and tensors disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from labkit import checkpoint
from labkit.checkpoint.schemes import Quantization, scheme_name

from ..models import make_model
from .damage import copy_with_config, copy_with_tensors

Q = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "scheme", "dtype"),
    [
        ("fp8", "fp8-w8a8-dynamic", "F8_E4M3"),
        ("static", "fp8-w8a8-static", "F8_E4M3"),
        ("int8", "int8-w8a8", "I8"),
        ("smooth", "int8-w8a8", "I8"),
        ("w4a16", "w4a16", "I32"),
    ],
)
def test_every_layer_but_the_head_has_the_scheme_of_its_recipe(
    quantized: dict[str, Path], name: str, scheme: str, dtype: str
) -> None:
    found = checkpoint.inspect(quantized[name], values=True)
    assert found.schemes == {layer: scheme for layer in found.schemes if layer != "lm_head"} | {"lm_head": "bf16"}
    assert len(found.layers) == 15
    assert {layer.dtype for layer in found.layers if layer.weights} == {dtype}
    assert found.mismatches == ()
    assert found.not_finite == ()


def test_an_unquantized_checkpoint_is_bf16_throughout(base: Path) -> None:
    found = checkpoint.inspect(base)
    assert set(found.schemes.values()) == {"bf16"}
    assert found.format == ""
    assert found.not_finite is None, "values are read only when asked for"


def test_shapes_are_those_of_the_weights_also_where_they_are_packed(base: Path, quantized: dict[str, Path]) -> None:
    wanted = {layer.name: layer.shape for layer in checkpoint.inspect(base).layers}
    for name in ("w4a16", "int8"):
        assert {layer.name: layer.shape for layer in checkpoint.inspect(quantized[name]).layers} == wanted


@pytest.mark.parametrize("name", ["fp8", "static", "int8", "w4a16", "head"])
def test_the_groups_add_up_to_the_bytes_of_the_tensors(quantized: dict[str, Path], name: str) -> None:
    found = checkpoint.inspect(quantized[name])
    tensors = load_file(quantized[name] / "model.safetensors")
    assert found.total_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert sum(group.bytes for group in found.groups) == found.total_bytes
    assert found.file_bytes == (quantized[name] / "model.safetensors").stat().st_size
    assert sum(group.tensors for group in found.groups) == len(tensors)


def test_an_int8_layer_takes_one_byte_a_weight_and_two_a_scale(quantized: dict[str, Path]) -> None:
    layer = next(layer for layer in checkpoint.inspect(quantized["int8"]).layers if layer.name == Q)
    assert layer.shape == (128, 128)
    assert layer.bytes == 128 * 128 + 2 * 128
    assert str(layer.weights) == "INT8 per channel"
    assert str(layer.activations) == "INT8 per token"


def test_a_quantized_head_is_in_its_own_group(quantized: dict[str, Path]) -> None:
    found = checkpoint.inspect(quantized["head"])
    assert found.schemes["lm_head"] == "fp8-w8a8-dynamic"
    assert found.group("lm_head").dtypes == ("F8_E4M3",)
    assert found.group("embeddings").dtypes == ("BF16",)


def test_a_tied_and_sharded_checkpoint_is_counted_once(tmp_path: Path) -> None:
    found = checkpoint.inspect(make_model(tmp_path / "m", "qwen2", tied=True, shard_size="200KB"))
    assert found.tied
    assert found.group("lm_head").bytes == 0
    assert found.total_bytes == sum(group.bytes for group in found.groups)
    untied = checkpoint.inspect(make_model(tmp_path / "u", "qwen2"))
    assert not untied.tied
    assert untied.total_bytes - found.total_bytes == untied.group("lm_head").bytes


def no_scheme(config: dict[str, Any]) -> None:
    del config["quantization_config"]


def other_strategy(config: dict[str, Any]) -> None:
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["strategy"] = "tensor"


def other_type(config: dict[str, Any]) -> None:
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["type"] = "float"


def static(config: dict[str, Any]) -> None:
    config["quantization_config"]["config_groups"]["group_0"]["input_activations"]["dynamic"] = False


@pytest.mark.parametrize(
    ("lie", "complaint"),
    [
        (no_scheme, "config.json says not quantized, the file holds I8"),
        (other_strategy, "config.json says INT8 per tensor, the scales have shape [128, 1]"),
        (other_type, "config.json says FP8 per channel, the file holds I8"),
        (static, "config.json says static activation scales, the file holds none"),
    ],
)
def test_a_config_that_claims_something_else_is_reported(
    quantized: dict[str, Path], tmp_path: Path, lie: Any, complaint: str
) -> None:
    found = checkpoint.inspect(copy_with_config(quantized["int8"], tmp_path / "m", lie))
    assert f"{Q}: {complaint}" in found.mismatches


def test_a_config_that_claims_quantization_of_a_plain_model_is_reported(
    base: Path, quantized: dict[str, Path], tmp_path: Path
) -> None:
    claim = checkpoint.read_config(quantized["int8"])["quantization_config"]
    folder = copy_with_config(base, tmp_path / "m", lambda config: config.update(quantization_config=claim))
    found = checkpoint.inspect(folder)
    assert set(found.schemes.values()) == {"bf16"}, "what the tensors say counts"
    assert "config.json says that the model is quantized, and no layer is" in found.mismatches


def test_scales_nobody_claims_are_reported(quantized: dict[str, Path], tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{Q}.input_scale"] = torch.ones(1, dtype=torch.bfloat16)

    found = checkpoint.inspect(copy_with_tensors(quantized["int8"], tmp_path / "m", spoil))
    assert found.mismatches == (f"{Q}: config.json says no static activation scales, the file holds some",)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["model.norm.weight", f"{Q}.weight_scale"])
def test_values_that_are_not_finite_are_found_by_name(
    quantized: dict[str, Path], tmp_path: Path, value: float, tensor: str
) -> None:
    folder = copy_with_tensors(
        quantized["int8"], tmp_path / "m", lambda tensors: tensors[tensor].view(-1)[3:4].fill_(value)
    )
    assert checkpoint.inspect(folder, values=True).not_finite == (tensor,)


def test_a_nan_in_fp8_is_found(quantized: dict[str, Path], tmp_path: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{Q}.weight"].view(torch.uint8)[2, 5] = 0xFF  # sign, and all ones: E4M3's NaN

    assert checkpoint.inspect(copy_with_tensors(quantized["fp8"], tmp_path / "m", spoil), values=True).not_finite == (
        f"{Q}.weight",
    )


def args(kind: str, bits: int, dynamic: bool = False, group: int = 0) -> Quantization:
    return Quantization(bits, kind, "group" if group else "channel", dynamic, group, True, "")


def test_schemes_have_the_names_of_the_capability_matrix() -> None:
    assert scheme_name(None, None) == "bf16"
    assert scheme_name(args("float", 8), None) == "fp8-weight-only"
    assert scheme_name(args("int", 4, group=128), args("float", 8, dynamic=True)) == "w4afp8"
    assert scheme_name(args("float", 4, group=16), args("float", 4, group=16)) == "nvfp4"
    assert scheme_name(args("float", 4, group=32), args("float", 4, group=32)) == "mxfp4"
    assert scheme_name(args("float", 4, group=16), None) == "nvfp4a16"
