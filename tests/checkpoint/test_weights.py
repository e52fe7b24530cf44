"""Weight errors: those of rounding, also where SmoothQuant moved the scales."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from labkit import checkpoint
from labkit.errors import CheckpointError

from ..models import make_model
from .damage import copy_with_tensors

Q = "model.layers.0.self_attn.q_proj"


def test_the_error_is_that_of_the_dequantized_weights(base: Path, quantized: dict[str, Path]) -> None:
    weight = load_file(base / "model.safetensors")[f"{Q}.weight"].float()
    stored = load_file(quantized["int8"] / "model.safetensors")
    rounded = stored[f"{Q}.weight"].float() * stored[f"{Q}.weight_scale"].float()
    expected = float((rounded - weight).norm() / weight.norm())
    errors = checkpoint.weight_errors(quantized["int8"], base)
    assert errors[Q] == pytest.approx(expected, rel=1e-5)
    assert len(errors) == 14


@pytest.mark.parametrize("name", ["fp8", "static", "int8", "w4a16", "mxfp4a16", "nvfp4a16", "smooth", "head"])
def test_dequantized_weights_are_those_that_the_loaded_model_computes_with(
    base: Path, quantized: dict[str, Path], name: str
) -> None:
    original, model = load_file(base / "model.safetensors"), checkpoint.load(quantized[name]).state_dict()
    errors = checkpoint.weight_errors(quantized[name], base)
    layer = "model.layers.1.mlp.down_proj"  # no norm feeds it, so smoothing leaves it alone
    weight = original[f"{layer}.weight"].float()
    expected = float((model[f"{layer}.weight"].float() - weight).norm() / weight.norm())
    assert errors[layer] == pytest.approx(expected, rel=0.05)  # the loaded one is rounded to BF16


def test_each_format_errs_as_much_as_its_bits_allow(base: Path, quantized: dict[str, Path]) -> None:
    mean = {
        name: sum(errors.values()) / len(errors)
        for name, folder in quantized.items()
        if (errors := checkpoint.weight_errors(folder, base))
    }
    assert 0.004 < mean["int8"] < 0.012
    assert 0.02 < mean["fp8"] < 0.035
    assert 0.08 < mean["w4a16"] < 0.16
    assert 0.08 < mean["nvfp4a16"] < mean["mxfp4a16"] < 0.16
    assert mean["smooth"] < 3 * mean["int8"], "the migration itself is undone"


@pytest.mark.parametrize(("name", "groups"), [("mxfp4a16", 32), ("nvfp4a16", 16), ("w4a16", 128), ("int8", 0)])
def test_scales_are_what_codes_are_multiplied_with(
    base: Path, quantized: dict[str, Path], name: str, groups: int
) -> None:
    weight = load_file(base / "model.safetensors")[f"{Q}.weight"].float()
    scales = checkpoint.weight_scales(quantized[name], Q)
    assert scales.shape == (weight.shape[0], weight.shape[1] // (groups or weight.shape[1]))
    largest = weight.reshape(*scales.shape, -1).abs().amax(-1) / scales  # in units of the grid
    top = {"mxfp4a16": 6, "nvfp4a16": 6, "w4a16": 7.5, "int8": 127.5}[name]
    assert 0.6 * top < float(largest.median()) < 1.2 * top
    if name == "mxfp4a16":
        assert set(torch.frexp(scales).mantissa.unique().tolist()) == {0.5}  # powers of two


def test_a_layer_without_scales_is_named(base: Path, quantized: dict[str, Path]) -> None:
    for folder, layer in ((base, Q), (quantized["int8"], "model.layers.9.x")):
        with pytest.raises(CheckpointError, match=f"no quantized layer {layer}"):
            checkpoint.weight_scales(folder, layer)


@pytest.mark.parametrize("architecture", ["qwen3", "granite", "gemma"])
def test_smoothing_is_undone_for_other_norms_too(tmp_path: Path, architecture: str) -> None:
    base = make_model(tmp_path / "base", architecture)
    offset = 1.0 if architecture == "gemma" else 0.0
    s = torch.rand(128) * 4 + 0.5

    def smooth(tensors: dict[str, torch.Tensor]) -> None:
        norm = "model.layers.0.input_layernorm.weight"
        tensors[norm] = ((offset + tensors[norm].float()) / s - offset).to(torch.float32)
        for part in ("q", "k", "v"):
            key = f"model.layers.0.self_attn.{part}_proj"
            weight = tensors[f"{key}.weight"].float() * s
            scale = weight.abs().amax(1, keepdim=True) / 127
            tensors[f"{key}.weight"] = (weight / scale).round().to(torch.int8)
            tensors[f"{key}.weight_scale"] = scale

    folder = copy_with_tensors(base, tmp_path / "out", smooth)
    config = (folder / "config.json").read_text().rstrip().removesuffix("}")
    group = '{"targets": ["re:.*layers.0.self_attn.[qkv]_proj"], "weights": {"num_bits": 8, "strategy": "channel"}}'
    claim = f'"quantization_config": {{"quant_method": "compressed-tensors", "config_groups": {{"a": {group}}}}}'
    (folder / "config.json").write_text(f"{config}, {claim}}}")
    errors = checkpoint.weight_errors(folder, base)
    assert len(errors) == 3
    assert max(errors.values()) < 0.02


def test_the_head_of_a_tied_model_is_compared_with_the_embeddings(quantized: dict[str, Path], tmp_path: Path) -> None:
    tied = make_model(tmp_path / "tied", tied=True)
    errors = checkpoint.weight_errors(quantized["head"], tied)
    assert set(errors) >= {"lm_head", Q}


def test_another_model_is_no_base(quantized: dict[str, Path], tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", hidden=256)
    with pytest.raises(CheckpointError, match="not the same model"):
        checkpoint.weight_errors(quantized["int8"], other)
    shallow = make_model(tmp_path / "shallow", layers=1)
    with pytest.raises(CheckpointError, match=r"has no tensor model\.layers\.1\."):
        checkpoint.weight_errors(quantized["int8"], shallow)
