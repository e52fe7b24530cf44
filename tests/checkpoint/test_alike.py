"""Whether two checkpoints hold the same tensors: to the bit, and however they are cut into files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from labkit.checkpoint import alike, different_tensors
from labkit.errors import CheckpointError

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "b.weight": torch.ones(5), "c.bias": torch.zeros(0)}


def write(folder: Path, *files: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    for name, tensors in zip(names, files, strict=True):
        save_file(tensors, folder / name)
    index = {tensor: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write(tmp_path / "whole", TENSORS)


def test_the_same_tensors_in_other_files_are_the_same(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alike, "CHUNK_BYTES", 7)
    parts = [{name: tensor} for name, tensor in reversed(TENSORS.items())]
    assert different_tensors(whole, write(tmp_path / "parts", *parts)) == []


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("a.weight", TENSORS["a.weight"] + torch.tensor([0, 0, 0, 1e-6])),
        ("a.weight", TENSORS["a.weight"].reshape(4, 3)),
        ("b.weight", TENSORS["b.weight"].view(torch.int32)),
        ("d.weight", torch.ones(1)),
        ("c.bias", None),
    ],
)
def test_one_that_is_missing_added_or_another_is_named(
    name: str, tensor: torch.Tensor | None, whole: Path, tmp_path: Path
) -> None:
    changed = {n: t for n, t in (TENSORS | {name: tensor}).items() if t is not None}
    other = write(tmp_path / "other", changed)
    assert different_tensors(whole, other) == different_tensors(other, whole) == [name]


def test_a_cut_file_is_an_error(whole: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", TENSORS)
    path = next(other.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        different_tensors(whole, other)
