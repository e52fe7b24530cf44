"""The scales of a calibrated KV cache, read and changed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from labkit.checkpoint import cache_scales, rescale_cache
from labkit.errors import CheckpointError
from tests.models import make_model


@pytest.fixture
def calibrated(tmp_path: Path) -> Path:
    folder = make_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    for layer, (key, value) in enumerate([(0.5, 0.25), (1.0, 2.0)]):
        tensors[f"model.layers.{layer}.self_attn.k_scale"] = torch.tensor([key], dtype=torch.bfloat16)
        tensors[f"model.layers.{layer}.self_attn.v_scale"] = torch.tensor([value], dtype=torch.bfloat16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_scales_are_read_by_name(calibrated: Path) -> None:
    assert cache_scales(calibrated) == {
        "model.layers.0.self_attn.k_scale": 0.5,
        "model.layers.0.self_attn.v_scale": 0.25,
        "model.layers.1.self_attn.k_scale": 1.0,
        "model.layers.1.self_attn.v_scale": 2.0,
    }


def test_a_copy_differs_in_its_scales_only(calibrated: Path, tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    stage.mkdir()
    rescale_cache(calibrated, stage, 0.5)
    assert {name: 2 * scale for name, scale in cache_scales(stage).items()} == cache_scales(calibrated)
    before, after = load_file(calibrated / "model.safetensors"), load_file(stage / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before if not name.endswith("_scale"))
    assert {path.name for path in stage.iterdir()} == {path.name for path in calibrated.iterdir()}


def test_a_checkpoint_without_scales_is_refused(tmp_path: Path) -> None:
    plain = make_model(tmp_path / "plain")
    assert cache_scales(plain) == {}
    with pytest.raises(CheckpointError, match="has no scales of a KV cache"):
        rescale_cache(plain, tmp_path, 0.5)
