"""Checkpoints that were damaged, mixed up or made to harm: refused with the file and the reason, never half loaded."""

from __future__ import annotations

import json
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from labkit import checkpoint
from labkit.errors import CheckpointError, LabError
from labkit.manifest import MANIFEST
from labkit.profiles import TINY
from labkit.quantize import quantizing
from labkit.serving import serve
from labkit.workspace import publishing
from tests.checkpoint.damage import copy_with_tensors
from tests.faults.count import Fault
from tests.models import make_model

Damage = Callable[[Path, random.Random], None]


def cut(path: Path, chance: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: chance.randrange(1, len(data))])


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


DAMAGES: dict[str, Damage] = {
    "missing": lambda path, chance: path.unlink(),
    "empty": lambda path, chance: path.write_bytes(b""),
    "cut": cut,
    "one bit flipped": flip,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as labs publish them: with the SHA-256 of each file."""
    made, final = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("published") / "bf16"
    make_model(made)
    with publishing(final, base="tiny", variant="bf16") as stage:
        shutil.copytree(made, stage, dirs_exist_ok=True)
    return final


@pytest.fixture(scope="module")
def quantized(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    final = tmp_path_factory.mktemp("quantized") / "int8"
    with quantizing(final, published, log=final.parent / "log") as job:
        model = job.load()
        oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]))
        job.save(model)
    return final


@pytest.mark.parametrize("how", DAMAGES)
def test_each_file_that_was_damaged_is_named_and_nothing_is_loaded(
    published: Path, tmp_path: Path, fault: Fault, how: str
) -> None:
    chance = random.Random(how)
    files = sorted(path.name for path in published.iterdir() if path.name != MANIFEST)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    for name in files:
        folder = shutil.copytree(published, tmp_path / name)
        DAMAGES[how](folder / name, chance)
        fault.injected()
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as told:
            checkpoint.load(folder)
        assert told.value.fix
        with pytest.raises(LabError, match=name.replace(".", r"\.")):
            serve(folder, engine=TINY.engine, log=tmp_path / "log")
    assert not (tmp_path / "log").exists(), "no engine was started"


def header(entries: object, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


WEIGHT = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "contents",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 10**9) + b"{" * 100,
        header(b"[" * 100_000),
        header(b'{"w": \xff}'),
        header([1, 2]),
        header({"w": 5}),
        header({"w": {"dtype": "BF16"}}),
        header({"w": WEIGHT | {"data_offsets": [8, 0]}}),
        header({"w": WEIGHT | {"data_offsets": [-8, 8]}}, bytes(8)),
        header({"w": WEIGHT | {"data_offsets": [0, 8, 16]}}, bytes(8)),
        header({"w": WEIGHT | {"data_offsets": "ab"}}, bytes(8)),
        header({"w": WEIGHT | {"shape": [2, 3]}}, bytes(8)),
        header({"w": WEIGHT | {"shape": "four"}}, bytes(8)),
        header({"w": WEIGHT | {"dtype": "PICKLE"}}, bytes(8)),
        header({"w": WEIGHT, "v": WEIGHT}, bytes(8)),
        header({"w": WEIGHT, "v": WEIGHT | {"data_offsets": [16, 24]}}, bytes(24)),
        header({"w": WEIGHT}, bytes(9)),
    ],
    ids=lambda contents: repr(contents[8:60]),
)
def test_a_header_that_lies_is_refused(tmp_path: Path, fault: Fault, contents: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(contents)
    fault.injected()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        checkpoint.read_headers(tmp_path)


def test_a_pickle_is_never_opened_and_foreign_code_never_runs(published: Path, tmp_path: Path, fault: Fault) -> None:
    mark = tmp_path / "it ran"
    payload = f"cposix\nsystem\n(Vtouch '{mark}'\ntR.".encode()
    for name in ("pytorch_model.bin", "model.pt", "model.pkl"):
        folder = tmp_path / name
        shutil.copytree(published, folder, ignore=shutil.ignore_patterns("*.safetensors", MANIFEST))
        (folder / name).write_bytes(payload)
        fault.injected()
        with pytest.raises(CheckpointError, match=f"only {name}"):
            checkpoint.load(folder)
    code = shutil.copytree(published, tmp_path / "code", ignore=shutil.ignore_patterns(MANIFEST))
    config = json.loads((code / "config.json").read_text())
    (code / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (code / "evil.py").write_text(f"import os; os.system(\"touch '{mark}'\")")
    fault.injected()
    with pytest.raises(CheckpointError, match="asks for code of its own"):
        checkpoint.load(code)
    assert not mark.exists()
    pickle.loads(payload)  # noqa: S301 (ours: it makes an empty file)
    assert mark.exists(), "opened, it would have run"


def test_without_the_guards_a_flipped_bit_and_a_lost_tensor_are_loaded_in_silence(
    published: Path, tmp_path: Path, fault: Fault
) -> None:
    """What transformers itself does with both: this is what the tests above keep from happening."""
    flipped = shutil.copytree(published, tmp_path / "flipped")
    weights = flipped / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 64  # in the last tensor's last number: its exponent
    weights.write_bytes(data)
    fault.injected()
    assert AutoModelForCausalLM.from_pretrained(flipped, local_files_only=True).num_parameters() > 0
    with pytest.raises(CheckpointError, match=r"model\.safetensors has other contents"):
        checkpoint.load(flipped)
    lost = copy_with_tensors(published, tmp_path / "lost", lambda tensors: tensors.pop("model.norm.weight"))
    fault.injected()
    assert AutoModelForCausalLM.from_pretrained(lost, local_files_only=True).num_parameters() > 0
    with pytest.raises(CheckpointError, match=r"missing: model\.norm\.weight"):
        checkpoint.load(lost)


UP = "model.layers.0.mlp.up_proj"
MISMATCHES: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "one scale for all": (
        lambda t: t.update({f"{UP}.weight_scale": t[f"{UP}.weight_scale"][:1]}),
        rf"{UP}: config\.json says INT8 per channel, the scales have shape \[1, 1\]",
    ),
    "scales for half of it": (
        lambda t: t.update({f"{UP}.weight_scale": t[f"{UP}.weight_scale"][:64].clone()}),
        "The size of tensor a",
    ),
    "scales that are whole numbers": (
        lambda t: t.update({f"{UP}.weight_scale": t[f"{UP}.weight_scale"].to(torch.int32)}),
        "the scales are stored as I32",
    ),
    "scales that are no numbers": (
        lambda t: t[f"{UP}.weight_scale"].fill_(float("nan")),
        rf"{UP}\.weight_scale holds NaN",
    ),
    "FP8 where INT8 is said": (
        lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].view(torch.float8_e4m3fn)}),
        "config.json says INT8 per channel, the file holds F8_E4M3",
    ),
    "no quantization where INT8 is said": (
        lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].float()}),
        "config.json says INT8 per channel, the file holds F32",
    ),
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_tensors_that_are_not_what_the_config_says_are_named_and_not_used(
    quantized: Path, tmp_path: Path, fault: Fault, what: str
) -> None:
    spoil, says = MISMATCHES[what]
    fault.injected()
    with pytest.raises(CheckpointError, match=says):
        checkpoint.load(copy_with_tensors(quantized, tmp_path / "spoilt", spoil))
