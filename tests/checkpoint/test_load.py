"""Strict loading: what a checkpoint lacks, holds too much, or hides is an error that names it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from labkit import checkpoint
from labkit.errors import CheckpointError, UsageError

from ..models import make_model, small_tokenizer
from .damage import copy_with_config, copy_with_tensors

UP = "model.layers.0.mlp.up_proj"
IDS = torch.tensor([list(range(5, 60))])


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "granite", "mistral", "gemma"])
def test_real_architectures_load_with_every_tensor_from_the_files(tmp_path: Path, architecture: str) -> None:
    folder = make_model(tmp_path / "m", architecture, tied=architecture == "gemma")
    model = checkpoint.load(folder)
    stored = load_file(folder / "model.safetensors")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in stored.items())


def test_a_sharded_and_tied_checkpoint_loads(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "qwen2", tied=True, shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    model = checkpoint.load(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("name", ["fp8", "static", "int8", "w4a16", "smooth", "head"])
def test_a_quantized_checkpoint_loads_and_computes_close_to_its_base(
    base: Path, quantized: dict[str, Path], name: str
) -> None:
    with torch.no_grad():
        wanted, found = checkpoint.load(base)(IDS).logits.float(), checkpoint.load(quantized[name])(IDS).logits.float()
    off = float((found - wanted).norm() / wanted.norm())
    assert 0 < off < (0.2 if name == "w4a16" else 0.08)


@pytest.mark.parametrize("lost", ["model.norm.weight", f"{UP}.weight", "lm_head.weight"])
def test_a_missing_tensor_is_named(base: Path, tmp_path: Path, lost: str) -> None:
    folder = copy_with_tensors(base, tmp_path / "m", lambda tensors: tensors.pop(lost))
    with pytest.raises(CheckpointError, match=f"missing: {lost}"):
        checkpoint.load(folder)


@pytest.mark.parametrize("lost", [f"{UP}.weight", f"{UP}.weight_scale", "model.norm.weight"])
def test_a_missing_tensor_of_a_quantized_checkpoint_is_named(
    quantized: dict[str, Path], tmp_path: Path, lost: str
) -> None:
    folder = copy_with_tensors(quantized["int8"], tmp_path / "m", lambda tensors: tensors.pop(lost))
    with pytest.raises(CheckpointError, match=f"missing: {lost}"):
        checkpoint.load(folder)


@pytest.mark.parametrize("which", ["plain", "int8"])
def test_unexpected_and_misshapen_tensors_are_named(
    base: Path, quantized: dict[str, Path], tmp_path: Path, which: str
) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.9.mlp.up_proj.weight"] = torch.zeros(3, 3)
        tensors["model.norm.weight"] = torch.zeros(7, dtype=torch.bfloat16)

    folder = copy_with_tensors(base if which == "plain" else quantized["int8"], tmp_path / "m", spoil)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder)
    assert r"unexpected: model.layers.9.mlp.up_proj.weight" in caught.value.what
    assert "of another shape than config.json says: model.norm.weight" in caught.value.what


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999999])
def test_a_cut_file_is_an_error_at_any_length(base: Path, tmp_path: Path, share: float) -> None:
    folder = shutil.copytree(base, tmp_path / "m")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        checkpoint.inspect(folder)
    with pytest.raises(CheckpointError):
        checkpoint.load(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", shard_size="200KB")
    lost = sorted(folder.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"lacks {lost.name}"):
        checkpoint.load(folder)


def test_a_pickle_is_refused_and_never_opened(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(CheckpointError, match=r"no safetensors file, only pytorch_model\.bin"):
        checkpoint.load(folder)


def test_a_pickle_beside_safetensors_is_left_alone(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "m")
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert checkpoint.load(folder).num_parameters() > 0


def test_a_checkpoint_that_brings_its_own_code_is_refused(base: Path, tmp_path: Path) -> None:
    folder = copy_with_config(
        base, tmp_path / "m", lambda config: config.update(auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    )
    (folder / "modeling_x.py").write_text("raise SystemExit('this code ran')")
    for read in (checkpoint.load, lambda f: checkpoint.resolve_model(str(f), offline=True)):
        with pytest.raises(CheckpointError, match="asks for code of its own"):
            read(folder)


def test_an_unknown_architecture_is_a_checkpoint_error(base: Path, tmp_path: Path) -> None:
    folder = copy_with_config(
        base, tmp_path / "m", lambda config: config.update(model_type="nothing", architectures=["NothingForCausalLM"])
    )
    with pytest.raises(CheckpointError, match="can't be loaded"):
        checkpoint.load(folder)


def test_a_tokenizer_that_is_not_there_is_a_checkpoint_error(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "m")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(CheckpointError, match="tokenizer in"):
        checkpoint.load_tokenizer(folder)


def test_the_tokenizer_comes_back_as_it_was_saved(base: Path) -> None:
    text = "Question: Mia has 14 apples.\nAnswer:"
    assert checkpoint.load_tokenizer(base)(text)["input_ids"] == small_tokenizer()(text)["input_ids"]


def test_a_local_folder_is_its_own_model(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoint.resolve_model(str(base), offline=True) == base
    monkeypatch.chdir(base.parent)
    assert checkpoint.resolve_model("base", offline=True) == base


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "a b", "one/two/three"])
def test_a_folder_that_is_not_there_is_no_hub_id(model: str) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        checkpoint.resolve_model(model, offline=True)


def test_a_hub_model_that_is_not_cached_points_at_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.resolve_model("someone/some-model", offline=True)
    assert "someone/some-model is not in this machine's hub cache" in caught.value.what
    assert "model = FOLDER" in caught.value.fix


def test_a_hub_model_that_is_cached_is_found_offline(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--some-model"
    snapshot = shutil.copytree(base, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = checkpoint.resolve_model("someone/some-model", offline=True)
    assert found == snapshot
    assert checkpoint.short_name(str(found)) == "some-model"


def test_short_names_are_fit_for_folders_and_the_ledger() -> None:
    assert checkpoint.short_name("Qwen/Qwen2.5-7B-Instruct") == "Qwen2.5-7B-Instruct"
    assert checkpoint.short_name("/data/my models/Some Model (v2)/") == "Some-Model-v2"
    assert checkpoint.short_name("x/a--b") == "a-b", "-- parts the model from the variant"
    assert checkpoint.short_name("/somewhere/tiny") != "tiny", "that name means the embedded model"
    with pytest.raises(UsageError, match="no name"):
        checkpoint.short_name("/data/---")


def test_config_json_that_is_damaged_is_named(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "m")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"})[:-3])
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        checkpoint.load(folder)
