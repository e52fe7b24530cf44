"""Calibration rows are tokenized once: found again by all that they were made of, and by nothing less."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from labkit import tokenized
from labkit.calibration import CalibrationSet, calibration_set
from labkit.profiles import WORKBENCH

from .models import small_tokenizer

TOKENIZER = small_tokenizer()
SPEC = replace(WORKBENCH.calibration, rows=3, max_length=64)
SETTINGS = {"rows": 3, "max_length": 64, "seed": 0}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "calibration.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"row {i}, \u00e4 caf\u00e9"}) for i in range(5)), "utf-8")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    TOKENIZER.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def made(data: Path) -> CalibrationSet:
    return calibration_set(SPEC, TOKENIZER, data=str(data))


def never() -> CalibrationSet:
    raise AssertionError("the rows were tokenized again")


def test_the_second_time_gives_the_same_rows_without_a_tokenizer(data: Path, tmp_path: Path) -> None:
    first = tokenized.once(tmp_path / "tokens", "k", lambda: made(data))
    assert tokenized.once(tmp_path / "tokens", "k", never) == first == made(data)
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == ["k.safetensors"]


def test_all_that_decides_about_the_rows_is_in_the_key(
    data: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        return tokenized.key(data, model, **SETTINGS)

    keys = [key(), *(tokenized.key(data, model, **{**SETTINGS, name: 7}) for name in SETTINGS)]
    for path in (data, model / "tokenizer.json", model / "chat_template.jinja", model / "config.json"):
        path.write_text((path.read_text() if path.exists() else "") + "\n\n")
        keys.append(key())
    monkeypatch.setattr(tokenized, "version", lambda name: "0.0")
    keys.append(key())
    assert len(set(keys)) == len(keys) == 9


def test_what_does_not_decide_about_the_rows_is_not_in_the_key(data: Path, model: Path) -> None:
    before = tokenized.key(data, model, **SETTINGS)
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "labkit_manifest.json").write_text("{}")
    os.utime(data, (0, 0))
    assert tokenized.key(data, model, **SETTINGS) == before


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_a_damaged_file_is_made_again(how: str, share: float, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "tokens" / "k.safetensors"
    first = tokenized.once(path.parent, "k", lambda: made(data))
    whole = path.read_bytes()
    at = int(share * len(whole))
    path.write_bytes(whole[:at] if how == "cut" else bytes([*whole[:at], whole[at] ^ 1, *whole[at + 1 :]]))
    with pytest.raises(AssertionError, match="tokenized again"):
        tokenized.once(path.parent, "k", never)
    assert tokenized.once(path.parent, "k", lambda: made(data)) == first
    assert tokenized.once(path.parent, "k", never) == first


def test_a_set_of_a_labkit_with_other_facts_is_made_again(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "k.safetensors"
    first = tokenized.once(tmp_path, "k", lambda: made(data))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'\\"seed\\":', b'\\"sead\\":'))
    assert path.read_bytes() != whole
    assert tokenized.once(tmp_path, "k", lambda: made(data)) == first
