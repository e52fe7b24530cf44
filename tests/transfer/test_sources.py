"""Wherever a model or data is taken, a bucket or a repository is taken too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labkit import checkpoint, open_lab
from labkit.errors import CheckpointError, TransferError, UsageError
from labkit.manifest import MANIFEST
from labkit.ops.outlook import model_state
from labkit.ops.serve import find_checkpoint
from labkit.transfer import Address, bundle, send
from tests.conftest import ROOT, clean_environment
from tests.models import make_model
from tests.transfer.conftest import BUCKET, CANARY


@pytest.fixture
def model(bare: Any, tmp_path: Path) -> str:
    """The address of a small model that was sent."""
    make_model(tmp_path / "small-model")
    send(bundle(tmp_path / "small-model"), Address("s3", BUCKET, "models/small-model"))
    return f"s3://{BUCKET}/models/small-model"


def test_a_lab_takes_a_model_by_its_address(model: str, tmp_path: Path) -> None:
    lab = open_lab("01_fp8_rtn", workspace=str(tmp_path / "workspace"), model=model)
    assert lab.model_name == "small-model"
    assert lab.checkpoint("fp8-dynamic").name == "small-model--fp8-dynamic"
    assert lab.base.parent.parent == lab.workspace.models
    assert checkpoint.load(lab.base).config.hidden_size == 128
    assert find_checkpoint(model, lab.workspace) == lab.base


def test_a_lab_takes_data_by_its_address(bare: Any, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "calibration.jsonl").write_text('{"text": "one row"}\n')
    send(bundle(folder), Address("s3", BUCKET, "data"))
    lab = open_lab("02_int8", workspace=str(tmp_path / "workspace"), data=f"s3://{BUCKET}/data")
    assert (Path(lab.parameters.data) / "calibration.jsonl").read_text() == '{"text": "one row"}\n'


def test_the_doctor_reads_the_config_of_a_model_that_is_not_here_yet(model: str) -> None:
    found = model_state(model)
    assert found.weight_bytes > 100_000
    assert not found.unreachable
    lost = model_state(f"s3://{BUCKET}/models/nothing")
    assert "nothing lies there" in lost.unreachable


def test_without_a_cache_an_address_is_an_error_that_says_how_to_bring_it(model: str) -> None:
    with pytest.raises(UsageError, match=f"labkit fetch {model}"):
        checkpoint.resolve_model(model, offline=True)


def test_a_source_that_is_no_checkpoint_or_not_there_is_an_error(bare: Any, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("x")
    send(bundle(tmp_path / "text"), Address("s3", BUCKET, "text"))
    with pytest.raises(CheckpointError, match=r"no config.json"):
        checkpoint.resolve_model(f"s3://{BUCKET}/text", offline=True, cache=tmp_path / "cache")
    with pytest.raises(TransferError, match="NoSuchBucket"):
        checkpoint.resolve_model("s3://no-such-bucket/text", offline=True, cache=tmp_path / "cache")


def labkit(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "labkit.ops.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean_environment())


def test_the_commands_send_plan_and_bring(bare: Any, tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    make_model(tmp_path / "small-model")
    target, back = f"s3://{BUCKET}/cli/small-model", tmp_path / "back"
    words = ("publish", str(tmp_path / "small-model"), target, "--no-card", "--workspace", str(tmp_path / "workspace"))
    planned = labkit(*words, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "Nothing was sent" in planned.stdout
    assert "KeyCount" not in bare.list_objects_v2(Bucket=BUCKET) or not bare.list_objects_v2(Bucket=BUCKET)["KeyCount"]
    sent = labkit(*words)
    assert sent.returncode == 0, sent.stderr
    assert "nothing had to be sent" in labkit(*words).stdout
    brought = labkit("fetch", target, str(back))
    assert brought.returncode == 0, brought.stderr
    assert {p.name for p in back.iterdir()} == {p.name for p in (tmp_path / "small-model").iterdir()} | {MANIFEST}
    again = labkit("fetch", target, str(tmp_path / "small-model"))
    assert again.returncode == 2
    assert "is there already" in again.stderr
    for done in (planned, sent, brought, again):
        assert CANARY not in done.stdout + done.stderr


def test_pickles_and_foreign_code_are_never_sent(bare: Any, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "small-model")
    (folder / "optimizer.pt").write_bytes(b"pickle")
    refused = labkit("publish", str(folder), f"s3://{BUCKET}/x", "--no-card")
    assert refused.returncode == 1
    assert "optimizer.pt" in refused.stderr
    (folder / "optimizer.pt").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    refused = labkit("publish", str(folder), f"s3://{BUCKET}/x", "--no-card")
    assert "auto_map" in refused.stderr
