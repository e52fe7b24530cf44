"""Loading strictly, saving, and what quantization left in a checkpoint: weights and scales."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from labkit import checkpoint
from labkit.errors import CheckpointError
from labkit.files import verify_manifest

from ..models import make_model, small_tokenizer
from .damage import copy_with_config, copy_with_tensors

UP = "model.layers.0.mlp.up_proj"
Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "granite", "mistral", "gemma"])
def test_real_architectures_load_with_every_tensor_from_the_files(tmp_path: Path, architecture: str) -> None:
    folder = make_model(tmp_path / "m", architecture, tied=architecture == "gemma")
    model = checkpoint.load(folder)
    stored = load_file(folder / "model.safetensors")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in stored.items())


def test_a_sharded_and_tied_checkpoint_loads_and_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "qwen2", tied=True, shard_size="200KB")
    model = checkpoint.load(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    _, shard, *_ = sorted(folder.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"lacks {shard.name}"):
        checkpoint.load(folder)


@pytest.mark.parametrize(
    ("name", "lost", "says"),
    [
        ("base", f"{UP}.weight", f"missing: {UP}.weight"),
        ("base", "lm_head.weight", "missing: lm_head.weight"),
        ("int8", f"{UP}.weight", f"{UP}: the file holds its scales and no weight"),
        ("int8", f"{UP}.weight_scale", f"{UP}: config.json says INT8 per channel, the file holds no weight_scale"),
        ("int8", "model.norm.weight", "missing: model.norm.weight"),
    ],
)
def test_a_missing_tensor_of_a_quantized_checkpoint_is_named(
    base: Path, quantized: dict[str, Path], tmp_path: Path, name: str, lost: str, says: str
) -> None:
    source = ({"base": base} | quantized)[name]
    folder = copy_with_tensors(source, tmp_path / "m", lambda tensors: tensors.pop(lost))
    with pytest.raises(CheckpointError, match=says):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", ["base", "int8"])
def test_unexpected_and_misshapen_tensors_are_named(
    base: Path, quantized: dict[str, Path], tmp_path: Path, name: str
) -> None:
    added = {"model.layers.9.mlp.up_proj.bias": torch.zeros(3), "model.norm.weight": torch.zeros(7).bfloat16()}
    source = ({"base": base} | quantized)[name]
    folder = copy_with_tensors(source, tmp_path / "m", lambda tensors: tensors.update(added))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder)
    assert "unexpected: model.layers.9.mlp.up_proj.bias" in caught.value.what
    assert "of another shape than config.json says: model.norm.weight" in caught.value.what


def test_an_unknown_architecture_is_an_error_and_no_quantization_is_none(base: Path, tmp_path: Path) -> None:
    null = copy_with_config(base, tmp_path / "null", lambda config: config.update(quantization_config=None))
    assert checkpoint.load(null).dtype == torch.bfloat16, "as tools that merge models write it"
    unknown = {"model_type": "nothing", "architectures": ["NothingForCausalLM"]}
    folder = copy_with_config(base, tmp_path / "m", lambda config: config.update(unknown))
    with pytest.raises(CheckpointError, match="can't be loaded"):
        checkpoint.load(folder)


def test_a_tokenizer_comes_back_as_it_was_saved_and_a_missing_one_is_an_error(base: Path, tmp_path: Path) -> None:
    text = "Question: Mia has 14 apples.\nAnswer:"
    assert checkpoint.load_tokenizer(base)(text)["input_ids"] == small_tokenizer()(text)["input_ids"]
    folder = shutil.copytree(base, tmp_path / "m", ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(CheckpointError, match="tokenizer in"):
        checkpoint.load_tokenizer(folder)


# --- saving -----------------------------------------------------------------------------------------------------------


def test_a_saved_model_is_the_loaded_one_and_its_manifest_fits(base: Path, tmp_path: Path) -> None:
    checkpoint.save(checkpoint.load(base), checkpoint.load_tokenizer(base), tmp_path / "out", base="b", variant="bf16")
    assert checkpoint.different_tensors(base, tmp_path / "out") == []
    manifest = verify_manifest(tmp_path / "out")
    assert (manifest["base"], manifest["variant"]) == ("b", "bf16")
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= manifest["files"].keys()


def test_a_generation_config_is_kept_as_it_is_also_one_that_contradicts_itself(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    contradiction = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 1]}
    (folder / "generation_config.json").write_text(json.dumps(contradiction))
    model = checkpoint.load(folder)
    checkpoint.save(model, small_tokenizer(), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()).items() >= contradiction.items()
    assert model.generation_config.temperature == 0.6, "the model in memory keeps it too"


# --- the scales of a KV cache -----------------------------------------------------------------------------------------


def test_a_copy_with_other_cache_scales_differs_in_nothing_else(tmp_path: Path) -> None:
    plain, rescaled = make_model(tmp_path / "plain"), tmp_path / "rescaled"
    assert checkpoint.cache_scales(plain) == {}
    with pytest.raises(CheckpointError, match="has no scales of a KV cache"):
        checkpoint.rescale_cache(plain, rescaled, 0.5)
    scales = {f"model.layers.{n}.self_attn.{kind}_scale": 2.0**-n for n in (0, 1) for kind in "kv"}
    stored = {name: torch.tensor([scale], dtype=torch.bfloat16) for name, scale in scales.items()}
    calibrated = copy_with_tensors(plain, tmp_path / "calibrated", lambda tensors: tensors.update(stored))
    assert checkpoint.cache_scales(calibrated) == scales
    checkpoint.rescale_cache(calibrated, rescaled, 0.5)
    assert checkpoint.cache_scales(rescaled) == {name: scale / 2 for name, scale in scales.items()}
    assert set(checkpoint.different_tensors(calibrated, rescaled)) == scales.keys()
    files = {path.name for path in calibrated.iterdir()} | {"labkit_manifest.json"}
    assert {path.name for path in rescaled.iterdir()} == files


# --- weight errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("int8", 0.004, 0.012),
        ("head", 0.02, 0.035),
        ("w4a16", 0.08, 0.16),
        ("nvfp4a16", 0.08, 0.16),
        ("mxfp4a16", 0.08, 0.16),
    ],
)
def test_each_format_errs_as_its_bits_allow_and_as_the_loaded_model_does(
    base: Path, quantized: dict[str, Path], name: str, least: float, most: float
) -> None:
    errors = checkpoint.weight_errors(quantized[name], base)
    assert least < sum(errors.values()) / len(errors) < most
    original, model = load_file(base / "model.safetensors"), checkpoint.load(quantized[name]).state_dict()
    layer = "model.layers.1.mlp.down_proj"
    weight = original[f"{layer}.weight"].float()
    expected = float((model[f"{layer}.weight"].float() - weight).norm() / weight.norm())
    assert errors[layer] == pytest.approx(expected, rel=0.05)  # the loaded one is rounded to BF16


@pytest.mark.parametrize(
    ("name", "groups", "top"), [("mxfp4a16", 32, 6), ("nvfp4a16", 16, 6), ("w4a16", 128, 7.5), ("int8", 128, 127.5)]
)
def test_scales_are_what_codes_are_multiplied_with(
    base: Path, quantized: dict[str, Path], name: str, groups: int, top: float
) -> None:
    weight = load_file(base / "model.safetensors")[f"{Q}.weight"].float()
    scales = checkpoint.weight_scales(quantized[name], Q)
    assert scales.shape == (weight.shape[0], weight.shape[1] // groups)
    largest = weight.reshape(*scales.shape, -1).abs().amax(-1) / scales  # in units of the grid
    assert 0.6 * top < float(largest.median()) < 1.2 * top
    if name == "mxfp4a16":
        assert set(torch.frexp(scales).mantissa.unique().tolist()) == {0.5}  # powers of two
    with pytest.raises(CheckpointError, match=r"no quantized layer model\.layers\.9\.x"):
        checkpoint.weight_scales(quantized[name], "model.layers.9.x")


def test_a_tied_head_is_compared_with_the_embeddings_and_what_is_no_base_is_refused(
    base: Path, quantized: dict[str, Path], tmp_path: Path
) -> None:
    assert {"lm_head", Q} <= checkpoint.weight_errors(quantized["head"], make_model(tmp_path / "t", tied=True)).keys()
    for other in ("hidden", 256), ("layers", 1):
        with pytest.raises(CheckpointError, match=r"has no tensor model\.layers\.\d\..* of shape"):
            checkpoint.weight_errors(quantized["int8"], make_model(tmp_path / other[0], **dict([other])))
    with pytest.raises(CheckpointError, match="were scaled or rotated"):
        checkpoint.weight_errors(quantized["smooth"], base)
