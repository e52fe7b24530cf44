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

from labkit import checkpoint
from labkit.errors import CheckpointError, LabError
from labkit.files import MANIFEST, publishing
from labkit.quantize import quantizing
from labkit.serve import serve
from labkit.store import Context, Workspace
from tests.checkpoint.damage import copy_with_config, copy_with_tensors
from tests.faults.count import Fault
from tests.models import make_model

Damage = Callable[[bytes, random.Random], bytes | None]


def flipped(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << chance.randrange(8)]) + data[place + 1 :]


DAMAGES: dict[str, Damage] = {
    "missing": lambda data, chance: None,
    "empty": lambda data, chance: b"",
    "cut": lambda data, chance: data[: chance.randrange(1, len(data))],
    "one bit flipped": flipped,
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
        damaged = DAMAGES[how]((folder / name).read_bytes(), chance)
        (folder / name).unlink()
        if damaged is not None:
            (folder / name).write_bytes(damaged)
        fault.injected()
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")) as refused:
            checkpoint.load(folder)
        assert refused.value.fix
        with pytest.raises(LabError, match=name.replace(".", r"\.")):
            serve(folder, Context(Workspace(tmp_path / "workspace")), log=tmp_path / "log")
    assert not (tmp_path / "log").exists(), "no engine was started"


def header(entries: object, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


WEIGHT = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}


LIES: list[bytes] = [
    struct.pack("<Q", 2**63) + b"{}",
    struct.pack("<Q", 10**9) + b"{" * 100,
    header(b"[" * 100_000),
    header(b'{"w": \xff}'),
    *(header(entries) for entries in ([1, 2], {"w": 5}, {"w": {"dtype": "BF16"}}, {"w": WEIGHT})),
    *(header({"w": WEIGHT | {"data_offsets": lie}}, bytes(8)) for lie in ([8, 0], [-8, 8], [0, 8, 16], "ab")),
    *(header({"w": WEIGHT | {"shape": lie}}, bytes(8)) for lie in ([2, 3], "four", [2**62, 4])),
    header({"w": WEIGHT | {"dtype": "PICKLE"}}, bytes(8)),
    header({"w": WEIGHT, "v": WEIGHT}, bytes(8)),
    header({"w": WEIGHT, "v": WEIGHT | {"data_offsets": [16, 24]}}, bytes(24)),
    header({"w": WEIGHT}, bytes(9)),
]


@pytest.mark.parametrize("contents", LIES, ids=lambda contents: repr(contents[8:60]))
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
    auto = {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    code = copy_with_config(published, tmp_path / "code", lambda config: config.update(auto))
    (code / "evil.py").write_text(f"import os; os.system(\"touch '{mark}'\")")
    fault.injected()
    for read in (checkpoint.load, lambda folder: checkpoint.resolve_model(str(folder), offline=True)):
        with pytest.raises(CheckpointError, match="asks for code of its own"):
            read(code)
    assert not mark.exists()
    pickle.loads(payload)  # noqa: S301 (ours: it makes an empty file)
    assert mark.exists(), "opened, it would have run"


UP = "model.layers.0.mlp.up_proj"
SCALE = f"{UP}.weight_scale"
MISMATCHES: dict[str, tuple[str, Callable[[torch.Tensor], torch.Tensor], str]] = {
    "one scale for all": (SCALE, lambda t: t[:1], r"INT8 per channel, the scales have shape \[1, 1\]"),
    "scales for half of it": (SCALE, lambda t: t[:64].clone(), r"INT8 per channel, the scales have shape \[64, 1\]"),
    "scales that are whole numbers": (SCALE, lambda t: t.to(torch.int32), "the scales are stored as I32"),
    "scales that are no numbers": (SCALE, lambda t: t.fill_(float("nan")), r"\.weight_scale holds NaN"),
    "FP8 where INT8 is said": (f"{UP}.weight", lambda t: t.view(torch.float8_e4m3fn), "the file holds F8_E4M3"),
    "no quantization where INT8 is said": (f"{UP}.weight", lambda t: t.float(), "the file holds F32"),
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_tensors_that_are_not_what_the_config_says_are_named_and_not_used(
    quantized: Path, tmp_path: Path, fault: Fault, what: str
) -> None:
    name, spoil, says = MISMATCHES[what]
    folder = copy_with_tensors(quantized, tmp_path / "m", lambda tensors: tensors.update({name: spoil(tensors[name])}))
    fault.injected()
    with pytest.raises(CheckpointError, match=rf"{UP}.*{says}"):
        checkpoint.load(folder)
