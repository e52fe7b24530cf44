"""What only an S3 store can do to a transfer: a real server, and its objects changed by a client that is not ours."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from labkit.errors import CheckpointError, DataError, LabError, TransferError, UsageError
from labkit.files import MANIFEST, verify_manifest
from labkit.transfer import Address, bundle, download, plan, upload
from tests.conftest import ROOT
from tests.transfer.conftest import BUCKET, CANARY, files_of, s3_server, use_store

Make = Callable[..., Path]
BIG = 40_000_000  # bytes: several parts


def test_objects_that_were_changed_there_are_not_taken_and_sent_again(
    s3: Address, bare: Any, make_folder: Make, tmp_path: Path
) -> None:
    folder = make_folder()
    upload(bundle(folder), s3)
    bare.put_object(Bucket=BUCKET, Key=f"{s3.inside}/notes.txt", Body=b"somebody's own")
    key = {"Bucket": BUCKET, "Key": f"{s3.inside}/model.safetensors"}
    bare.put_object(**key, Body=b"\1" * 3_000_000)
    with pytest.raises(CheckpointError, match=r"model.safetensors has other contents"):
        download(s3, tmp_path / "back")
    bare.put_object(**key, Body=b"short")
    with pytest.raises(CheckpointError, match="has 5 bytes, not 3,000,000"):
        download(s3, tmp_path / "back")
    bare.delete_object(**key)
    with pytest.raises(CheckpointError, match="is missing"):
        download(s3, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    bare.put_object(**key, Body=b"\1" * 3_000_000)  # the size is right
    assert plan(bundle(folder), s3).send.keys() == {"model.safetensors"}
    upload(bundle(folder), s3)
    download(s3, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(folder), "only what the manifest names belongs to it"
    assert bare.get_object(Bucket=BUCKET, Key=f"{s3.inside}/notes.txt")["Body"].read() == b"somebody's own"


def test_a_manifest_that_climbs_out_of_the_folder_is_refused(
    s3: Address, bare: Any, make_folder: Make, tmp_path: Path
) -> None:
    name = "../evil"
    upload(bundle(make_folder()), s3)
    manifest = json.loads(bare.get_object(Bucket=BUCKET, Key=f"{s3.inside}/{MANIFEST}")["Body"].read())
    manifest["files"][name] = {"bytes": 4, "sha256": "0" * 64}
    bare.put_object(Bucket=BUCKET, Key=f"{s3.inside}/{MANIFEST}", Body=json.dumps(manifest).encode())
    bare.put_object(Bucket=BUCKET, Key=f"{s3.inside}/{name}", Body=b"evil")
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="outside of its folder"):
        download(s3, tmp_path / "in" / "back")
    assert list((tmp_path / "in").iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_a_prefix_that_nobody_uploaded_or_whose_manifest_is_damaged_is_not_taken(
    s3: Address, bare: Any, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="nothing lies there"):
        download(s3, tmp_path / "back")
    bare.put_object(Bucket=BUCKET, Key=f"{s3.inside}/model.safetensors", Body=b"by hand")
    with pytest.raises(CheckpointError, match="labkit publish"):
        download(s3, tmp_path / "back")
    bare.put_object(Bucket=BUCKET, Key=f"{s3.inside}/{MANIFEST}", Body=b'{"files": {"x": {"bytes": -1, "sha256": ""}}}')
    with pytest.raises(DataError, match=f"{MANIFEST} is damaged"):
        download(s3, tmp_path / "back")


def test_a_store_that_refuses_newer_checksum_headers_is_served(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target = make_folder(**{"big.safetensors": BIG}), Address("s3", BUCKET, "x")
    with s3_server(tmp_path, "--refuse-checksums") as store:
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")  # for the bare client
        use_store(monkeypatch, store)
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
        with pytest.raises(TransferError, match="NotImplemented"):
            upload(bundle(folder), target)
        monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")
        upload(bundle(folder), target)
        download(target, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(folder)


def test_a_self_signed_store_is_refused_until_its_certificate_is_named(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    target = Address("s3", BUCKET, "x")
    with s3_server(tmp_path, "--certificate", str(tmp_path / "server.pem")) as store:
        assert store.url.startswith("https://")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        use_store(monkeypatch, store)
        monkeypatch.delenv("AWS_CA_BUNDLE")
        with pytest.raises(TransferError, match="AWS_CA_BUNDLE"):
            upload(bundle(make_folder()), target)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "missing.pem"))
        with pytest.raises(UsageError, match="no such file"):
            upload(bundle(make_folder()), target)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        upload(bundle(make_folder()), target)
        download(target, tmp_path / "back")


def test_errors_name_the_place_and_never_the_key(
    s3: Address, make_folder: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = bundle(make_folder())
    found: list[LabError] = []

    def failing(target: Address) -> str:
        with pytest.raises(LabError) as caught:
            upload(ours, target)
        found.append(caught.value)
        assert caught.value.fix
        return str(caught.value)

    assert "NoSuchBucket" in failing(Address("s3", "another", "x"))
    monkeypatch.setenv("AWS_S3_ENDPOINT", "http://127.0.0.1:9")
    assert "can't be reached" in failing(s3)
    monkeypatch.setenv("AWS_S3_ENDPOINT", "http://store.example:9000")
    assert "without TLS" in failing(s3)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_S3_ENDPOINT", "http://127.0.0.1:9")
    assert "not set in the environment: AWS_SECRET_ACCESS_KEY" in failing(s3)
    for error in found:
        assert CANARY not in repr(error)
        assert error.__cause__ is None, "boto's own error may hold a signed address"


def test_a_full_disk_says_so_and_the_next_try_goes_on(s3: Address, make_folder: Make, tmp_path: Path) -> None:
    upload(bundle(make_folder(**{"big.safetensors": BIG})), s3)
    script = (
        "import resource, sys; from pathlib import Path; from labkit.transfer import *;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000)); import signal;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); download(parse(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(s3), str(tmp_path / "back")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "TransferError" in done.stderr
    assert "File too large" in done.stderr
    assert not (tmp_path / "back").exists()
    download(s3, tmp_path / "back")
    verify_manifest(tmp_path / "back")
