"""The folder of a model: found, refused where it is no whole checkpoint, and compared tensor by tensor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from labkit import checkpoint
from labkit.errors import CheckpointError, UsageError

from ..models import make_model

TENSORS = {"a.weight": torch.arange(12.0).reshape(3, 4), "b.weight": torch.ones(5), "c.bias": torch.zeros(0)}


def write(folder: Path, *files: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    for number, tensors in enumerate(files):
        save_file(tensors, folder / f"{number}.safetensors")
    index = {tensor: f"{number}.safetensors" for number, tensors in enumerate(files) for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


def test_headers_say_where_each_tensor_lies(tmp_path: Path) -> None:
    for info in checkpoint.read_headers(write(tmp_path / "m", TENSORS)).values():
        stored = info.file.read_bytes()[info.begin : info.begin + info.bytes]
        assert (info.dtype, info.shape) == ("F32", tuple(TENSORS[info.name].shape))
        assert stored == TENSORS[info.name].numpy().tobytes()


def test_the_same_tensors_in_other_files_are_the_same(tmp_path: Path) -> None:
    parts = [{name: tensor} for name, tensor in reversed(TENSORS.items())]
    one, other = write(tmp_path / "whole", TENSORS), write(tmp_path / "parts", *parts)
    assert checkpoint.different_tensors(one, other) == []


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
def test_a_tensor_that_is_missing_added_or_another_is_named(
    name: str, tensor: torch.Tensor | None, tmp_path: Path
) -> None:
    changed = {n: t for n, t in (TENSORS | {name: tensor}).items() if t is not None}
    one, other = write(tmp_path / "one", TENSORS), write(tmp_path / "other", changed)
    assert checkpoint.different_tensors(one, other) == checkpoint.different_tensors(other, one) == [name]


def test_what_is_no_whole_checkpoint_is_refused_with_the_reason(base: Path, tmp_path: Path) -> None:
    def refused(name: str, says: str, content: bytes = b"") -> None:
        folder = shutil.copytree(base, tmp_path / "m", ignore=shutil.ignore_patterns(name))
        if content:
            (folder / name).write_bytes(content)
        for use in (checkpoint.load, lambda f: checkpoint.resolve_model(str(f), offline=True)):
            with pytest.raises(CheckpointError, match=says):
                use(folder)
        shutil.rmtree(folder)

    refused("config.json", r"config\.json can.t be read", b'{"model_type": "lla')
    refused("config.json", r"has no config\.json")
    refused("model.safetensors.index.json", r"index\.json is damaged", b'{"weight_map": {"a": "../b"}}')
    refused("model.safetensors.index.json", r"lacks b\.safetensors", b'{"weight_map": {"a": "b.safetensors"}}')
    refused("model.safetensors", "has no safetensors file")
    refused("adapter_config.json", "has a LoRA adapter", b"{}")


def test_a_local_folder_is_its_own_model_and_one_that_is_not_there_is_no_hub_id(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    assert checkpoint.resolve_model(str(base), offline=True) == checkpoint.resolve_model("base", offline=True) == base
    for model in ("./nowhere", "/nowhere/at/all", "a b", "one/two/three"):
        with pytest.raises(CheckpointError, match="no such folder"):
            checkpoint.resolve_model(model, offline=True)


def test_a_hub_model_is_found_in_the_cache_or_points_at_a_local_folder(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.resolve_model("someone/some-model", offline=True)
    assert "someone/some-model is not in this machine's hub cache" in caught.value.what
    assert "model = FOLDER" in caught.value.fix
    commit, repository = "0123456789abcdef0123456789abcdef01234567", tmp_path / "models--someone--some-model"
    snapshot = shutil.copytree(base, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert checkpoint.resolve_model("someone/some-model", offline=True) == snapshot
    assert checkpoint.short_name(str(snapshot)) == "some-model"


def test_short_names_are_fit_for_folders_and_the_ledger() -> None:
    assert checkpoint.short_name("Qwen/Qwen2.5-7B-Instruct") == "Qwen2.5-7B-Instruct"
    assert checkpoint.short_name("/data/my models/Some Model (v2)/") == "Some-Model-v2"
    assert checkpoint.short_name("x/a--b") == "a-b", "-- parts the model from the variant"
    assert checkpoint.short_name("/somewhere/tiny") != "tiny", "that name means the embedded model"
    with pytest.raises(UsageError, match="no name"):
        checkpoint.short_name("/data/---")


def test_a_model_says_where_it_came_from_but_not_its_path(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    assert checkpoint.origin(str(folder), folder) == {"base_model": "", "license": ""}
    (folder / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    for source in ("Qwen/Qwen3-8B", "hub:Qwen/Qwen3-8B@main"):
        assert checkpoint.origin(source, folder) == {"base_model": "Qwen/Qwen3-8B", "license": "mit"}
    assert checkpoint.origin("tiny", folder) == {"base_model": "", "license": "apache-2.0"}
