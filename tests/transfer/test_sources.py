"""Wherever a model or data is taken, a bucket or a repository is taken too; and the commands that send and fetch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labkit import checkpoint, open_lab
from labkit.errors import CheckpointError, TransferError, UsageError
from labkit.files import MANIFEST
from labkit.ops.doctor import model_state
from labkit.ops.serve import find_checkpoint
from labkit.transfer import Address, bundle, upload
from tests.models import make_model
from tests.transfer.conftest import BUCKET, CANARY, labkit


@pytest.fixture
def model(bare: Any, tmp_path: Path) -> str:
    """The address of a small model that was uploaded."""
    make_model(tmp_path / "small-model")
    upload(bundle(tmp_path / "small-model"), Address("s3", BUCKET, "models/small-model"))
    return f"s3://{BUCKET}/models/small-model"


def test_a_lab_takes_a_model_and_data_by_their_addresses(model: str, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "calibration.jsonl").write_text('{"text": "one row"}\n')
    upload(bundle(tmp_path / "rows"), Address("s3", BUCKET, "data"))
    lab = open_lab("01_fp8_rtn", workspace=str(tmp_path / "workspace"), model=model, data=f"s3://{BUCKET}/data")
    assert lab.model_name == "small-model"
    assert lab.checkpoint("fp8-dynamic").name == "small-model--fp8-dynamic"
    assert lab.base.parent.parent == lab.workspace.models
    assert checkpoint.load(lab.base).config.hidden_size == 128
    assert find_checkpoint(model, lab.workspace) == lab.base
    assert (Path(lab.parameters.data) / "calibration.jsonl").read_text() == '{"text": "one row"}\n'


def test_the_doctor_reads_the_config_of_a_model_that_is_not_here_yet(model: str) -> None:
    weight_bytes, unreachable = model_state(model)
    assert weight_bytes > 100_000
    assert not unreachable
    assert "nothing lies there" in model_state(f"s3://{BUCKET}/models/nothing")[1]


def test_a_source_that_is_no_checkpoint_or_not_there_is_an_error(bare: Any, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("x")
    upload(bundle(tmp_path / "text"), Address("s3", BUCKET, "text"))
    with pytest.raises(UsageError, match=f"labkit fetch s3://{BUCKET}/text"):
        checkpoint.resolve_model(f"s3://{BUCKET}/text", offline=True)  # no cache
    with pytest.raises(CheckpointError, match=r"no config.json"):
        checkpoint.resolve_model(f"s3://{BUCKET}/text", offline=True, cache=tmp_path / "cache")
    with pytest.raises(TransferError, match="NoSuchBucket"):
        checkpoint.resolve_model("s3://no-such-bucket/text", offline=True, cache=tmp_path / "cache")


def test_the_commands_plan_publish_and_fetch(bare: Any, tmp_path: Path) -> None:
    make_model(tmp_path / "small-model")
    target, back = f"s3://{BUCKET}/cli/small-model", tmp_path / "back"
    words = ("publish", str(tmp_path / "small-model"), target, "--no-card", "--workspace", str(tmp_path / "workspace"))
    planned = labkit(*words, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "Nothing was sent" in planned.stdout
    assert not bare.list_objects_v2(Bucket=BUCKET).get("KeyCount")
    sent = labkit(*words)
    assert sent.returncode == 0, sent.stderr
    assert "nothing had to be sent" in labkit(*words).stdout
    fetched = labkit("fetch", target, str(back))
    assert fetched.returncode == 0, fetched.stderr
    assert {p.name for p in back.iterdir()} == {p.name for p in (tmp_path / "small-model").iterdir()} | {MANIFEST}
    again = labkit("fetch", target, str(tmp_path / "small-model"))
    assert again.returncode == 2
    assert "is there already" in again.stderr
    assert not [done for done in (planned, sent, fetched, again) if CANARY in done.stdout + done.stderr]


def test_pickles_and_foreign_code_are_never_sent(bare: Any, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "small-model")
    (folder / "optimizer.pt").write_bytes(b"pickle")
    refused = labkit("publish", str(folder), f"s3://{BUCKET}/x", "--no-card")
    assert refused.returncode == 1
    assert "optimizer.pt" in refused.stderr
    (folder / "optimizer.pt").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    assert "auto_map" in labkit("publish", str(folder), f"s3://{BUCKET}/x", "--no-card").stderr
