"""Saving: whole or not at all, with a manifest, and whatever a real model's generation config says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from labkit import checkpoint
from labkit.errors import CheckpointError
from labkit.manifest import MANIFEST, read_manifest, verify_manifest

from ..models import make_model, small_tokenizer

ROOT = Path(__file__).parents[2]


def test_a_saved_model_is_the_loaded_one_and_its_manifest_fits(base: Path, tmp_path: Path) -> None:
    model = checkpoint.load(base)
    checkpoint.save(model, checkpoint.load_tokenizer(base), tmp_path / "out", base="b", variant="bf16")
    again = checkpoint.load(tmp_path / "out")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    manifest = verify_manifest(tmp_path / "out")
    assert (manifest["base"], manifest["variant"]) == ("b", "bf16")
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= manifest["files"].keys()


def test_a_flipped_bit_is_invisible_to_the_loader_and_found_by_the_manifest(base: Path, tmp_path: Path) -> None:
    checkpoint.save(checkpoint.load(base), small_tokenizer(), tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    manifest = (tmp_path / "out" / MANIFEST).rename(tmp_path / MANIFEST)  # with it the loader looks, too
    checkpoint.load(tmp_path / "out")
    manifest.rename(tmp_path / "out" / MANIFEST)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has other contents"):
        verify_manifest(tmp_path / "out")


def test_a_generation_config_that_contradicts_itself_is_kept_as_it_is(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    contradiction = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 1]}
    (folder / "generation_config.json").write_text(json.dumps(contradiction))
    model = checkpoint.load(folder)
    assert model.generation_config.temperature == 0.6
    checkpoint.save(model, small_tokenizer(), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == contradiction
    assert model.generation_config.temperature == 0.6, "the model in memory keeps it too"


def test_a_generation_config_without_a_file_is_written_from_the_model(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m")
    (folder / "generation_config.json").unlink()
    model = checkpoint.load(folder)
    model.generation_config.temperature = 0.3
    checkpoint.save(model, small_tokenizer(), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.3


def test_a_save_that_fails_keeps_the_old_checkpoint(base: Path, tmp_path: Path) -> None:
    checkpoint.save(checkpoint.load(base), small_tokenizer(), tmp_path / "out", base="old")

    class Broken:
        def save_pretrained(self, folder: Path) -> None:
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(checkpoint.load(base), Broken(), tmp_path / "out", base="new")
    assert verify_manifest(tmp_path / "out")["base"] == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


SAVING = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from labkit import checkpoint
base, final = map(Path, sys.argv[1:])
model, tokenizer = checkpoint.load(base), checkpoint.load_tokenizer(base)
print("saving", flush=True)
for number in range(1000):
    checkpoint.save(model, tokenizer, final, number=number)
"""


@pytest.mark.parametrize("after_seconds", [0.0, 0.03, 0.3])
def test_a_killed_save_leaves_nothing_that_looks_finished(base: Path, tmp_path: Path, after_seconds: float) -> None:
    final = tmp_path / "out" / "int8-gptq"
    child = subprocess.Popen(
        [sys.executable, "-c", SAVING, str(base), str(final)], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "saving\n"
    time.sleep(after_seconds)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    if final.exists():
        verify_manifest(final)
        checkpoint.load(final)
    else:
        with pytest.raises(CheckpointError):
            read_manifest(final)
    checkpoint.save(checkpoint.load(base), small_tokenizer(), final, number=-1)
    assert verify_manifest(final)["number"] == -1
    assert [path.name for path in final.parent.iterdir()] == [final.name], "the next save clears what was left behind"
