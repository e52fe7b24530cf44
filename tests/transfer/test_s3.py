"""Out to a real S3 server and back: identical by SHA-256, whole or not at all, resumed after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from labkit.errors import CheckpointError, DataError, LabError, TransferError, UsageError
from labkit.manifest import MANIFEST, verify_manifest
from labkit.transfer import Address, bring, bring_to_cache, bundle, plan, send
from tests.conftest import ROOT
from tests.transfer.conftest import BUCKET, CANARY, Store, s3_server, use_store

Make = Callable[..., Path]
BIG = 70_000_000  # bytes
PARTS, RANGES = 9, 5  # that they are sent and brought in
DEADLINE_SECONDS = 30


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_goes_out_and_comes_back_identical(s3: Address, make_folder: Make, tmp_path: Path) -> None:
    folder, moved = make_folder(**{"big.safetensors": BIG}), []
    found = send(bundle(folder), s3, moved.append)
    assert sum(moved) == found.size == bundle(folder).size > BIG
    assert not found.there
    came: list[int] = []
    bring(s3, tmp_path / "back", came.append)
    assert sum(came) == sum(moved)
    assert files_of(tmp_path / "back") == files_of(folder)
    verify_manifest(tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir() if "fetch" in path.name) == [], "no stage is left"


def test_what_is_there_is_not_sent_again(s3: Address, make_folder: Make, shared_s3: Store) -> None:
    ours = bundle(make_folder(**{"big.safetensors": BIG}))
    assert plan(ours, s3).send.keys() == ours.files.keys()
    assert shared_s3.requests("PUT") == shared_s3.requests("POST") == [], "a plan sends nothing"
    send(ours, s3)
    shared_s3.forget()
    again = send(ours, s3)
    assert again.whole
    assert again.there.keys() == ours.files.keys()
    assert shared_s3.requests("PUT") == shared_s3.requests("POST") == shared_s3.requests("DELETE") == []


def test_only_what_changed_is_sent_and_what_is_no_longer_named_is_taken_away(
    s3: Address, bare: Any, make_folder: Make, tmp_path: Path
) -> None:
    send(bundle(make_folder(**{"old.safetensors": 10})), s3)
    bare.put_object(Bucket=BUCKET, Key=f"{s3.inside}/notes.txt", Body=b"somebody's own")
    second = bundle(make_folder("second"), {"README.md": write(tmp_path / "card.md", "# card")})
    found = send(second, s3)
    assert found.send.keys() == {"README.md"}
    assert found.gone == ("old.safetensors",)
    left = {item["Key"].removeprefix(f"{s3.inside}/") for item in bare.list_objects_v2(Bucket=BUCKET)["Contents"]}
    assert left == {*second.files, MANIFEST, "notes.txt"}
    bring(s3, tmp_path / "back")
    assert (tmp_path / "back" / "README.md").read_text() == "# card"
    assert not (tmp_path / "back" / "notes.txt").exists(), "only what the manifest names belongs to it"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_damaged_folder_is_not_sent_and_what_is_there_stays(s3: Address, make_folder: Make, tmp_path: Path) -> None:
    send(bundle(make_folder()), s3)
    other = make_folder("other", seed=1)
    (other / "sub" / "tokenizer.json").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="has 1 bytes, not 0"):
        bundle(other)
    (other / "sub" / "tokenizer.json").write_bytes(b"")
    (other / "model.safetensors").write_bytes(bytes(3_000_000))  # the size is right, the contents are not
    with pytest.raises(CheckpointError, match=r"model.safetensors has other contents"):
        send(bundle(other), s3)
    bring(s3, tmp_path / "back")


def test_while_files_change_nothing_there_claims_to_be_whole(s3: Address, make_folder: Make, tmp_path: Path) -> None:
    send(bundle(make_folder()), s3)
    other = make_folder("other", seed=1, **{"new.safetensors": BIG})
    (other / "new.safetensors").write_bytes(bytes(BIG))
    with pytest.raises(CheckpointError, match=r"new.safetensors has other contents"):
        send(bundle(other), s3)  # its other files have arrived
    with pytest.raises(CheckpointError, match="cut off"):
        bring(s3, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_sending_that_was_killed_goes_on_where_it_was(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target = make_folder(**{"big.safetensors": BIG}), Address("s3", BUCKET, "x")
    with s3_server(tmp_path, "--seconds", "0.2") as store:
        use_store(monkeypatch, store)
        killed_in_the_middle("send(bundle(Path(sys.argv[1])), parse('s3://workshop/x'))", folder, store, sent_parts)
        assert sent_parts(store) < PARTS
        with pytest.raises(CheckpointError, match=MANIFEST):
            bring(target, tmp_path / "back")
        store.forget()
        send(bundle(folder), target)
        assert sent_parts(store) < PARTS, "parts that had arrived are not sent again"
        bring(target, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(folder)


def test_bringing_that_was_killed_goes_on_where_it_was(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, back, source = make_folder(**{"big.safetensors": BIG}), tmp_path / "back", Address("s3", BUCKET, "x")
    with s3_server(tmp_path, "--seconds", "0.2") as store:
        use_store(monkeypatch, store)
        send(bundle(folder), source)
        killed_in_the_middle("bring(parse('s3://workshop/x'), Path(sys.argv[1]))", back, store, asked_ranges)
        assert asked_ranges(store) < RANGES
        assert not back.exists()
        store.forget()
        bring(source, back)
        assert asked_ranges(store) < RANGES, "ranges that had arrived are not asked for again"
    assert files_of(back) == files_of(folder)


def killed_in_the_middle(call: str, folder: Path, store: Store, parts: Callable[[Store], int]) -> None:
    """Runs a call in a process of its own, one part at a time, and kills it when the second part is under way."""
    store.forget()
    code = f"import sys; from pathlib import Path; from labkit.transfer import *; {call}"
    environment = {**os.environ, "LABKIT_TRANSFER_CONNECTIONS": "1"}
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as child:
        wait_for(lambda: parts(store) >= 2)
        child.send_signal(signal.SIGKILL)


def sent_parts(store: Store) -> int:
    """Parts of the large file that the store was asked to take."""
    return sum("partNumber" in one["QUERY_STRING"] for one in store.requests("PUT"))


def asked_ranges(store: Store) -> int:
    """Ranges of the large file that the store was asked to give."""
    return sum("big.safetensors" in one["PATH_INFO"] for one in store.requests("GET"))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come so far"
        time.sleep(0.02)


def test_an_object_that_was_changed_there_is_not_taken(
    s3: Address, bare: Any, make_folder: Make, tmp_path: Path
) -> None:
    folder = make_folder()
    send(bundle(folder), s3)
    key = {"Bucket": BUCKET, "Key": f"{s3.inside}/model.safetensors"}
    bare.put_object(**key, Body=b"\1" * 3_000_000)
    with pytest.raises(CheckpointError, match=r"model.safetensors has other contents"):
        bring(s3, tmp_path / "back")
    bare.put_object(**key, Body=b"short")
    with pytest.raises(CheckpointError, match="has 5 bytes, not 3,000,000"):
        bring(s3, tmp_path / "back")
    bare.delete_object(**key)
    with pytest.raises(CheckpointError, match="is missing"):
        bring(s3, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    send(bundle(folder), s3)
    bring(s3, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(folder)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "C:\\evil"])
def test_a_manifest_that_climbs_out_of_the_folder_is_refused(
    name: str, s3: Address, bare: Any, make_folder: Make, tmp_path: Path
) -> None:
    send(bundle(make_folder()), s3)
    manifest = json.loads(bare.get_object(Bucket=BUCKET, Key=f"{s3.inside}/{MANIFEST}")["Body"].read())
    manifest["files"][name] = {"bytes": 4, "sha256": "0" * 64}
    bare.put_object(Bucket=BUCKET, Key=f"{s3.inside}/{MANIFEST}", Body=json.dumps(manifest).encode())
    bare.put_object(Bucket=BUCKET, Key=f"{s3.inside}/{name}", Body=b"evil")
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match="outside of its folder"):
        bring(s3, tmp_path / "in" / "back")
    assert list((tmp_path / "in").iterdir()) == []
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"files": 3}', '{"files": {"x": {}}}', '{"files": {"x": {"bytes": -1, "sha256": ""}}}']
)
def test_a_damaged_manifest_is_an_error_that_names_it(text: str, s3: Address, bare: Any, tmp_path: Path) -> None:
    bare.put_object(Bucket=BUCKET, Key=f"{s3.inside}/{MANIFEST}", Body=text.encode())
    with pytest.raises(DataError, match=f"{MANIFEST} is damaged"):
        bring(s3, tmp_path / "back")


def test_a_prefix_that_nobody_sent_is_not_taken(s3: Address, bare: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing lies there"):
        bring(s3, tmp_path / "back")
    bare.put_object(Bucket=BUCKET, Key=f"{s3.inside}/model.safetensors", Body=b"by hand")
    with pytest.raises(CheckpointError, match="labkit publish"):
        bring(s3, tmp_path / "back")


def test_a_folder_that_is_there_is_left_alone(s3: Address, make_folder: Make, tmp_path: Path) -> None:
    send(bundle(make_folder()), s3)
    bring(s3, tmp_path / "back")
    bring(s3, tmp_path / "back")  # the very same: nothing to do
    (tmp_path / "back" / "config.json").write_text("mine")
    with pytest.raises(UsageError, match=r"config.json differs"):
        bring(s3, tmp_path / "back")
    assert (tmp_path / "back" / "config.json").read_text() == "mine"
    own = tmp_path / "own"
    own.mkdir()
    write(own / "notes.txt", "mine")
    with pytest.raises(UsageError, match="other files"):
        bring(s3, own)
    assert files_of(own) == {"notes.txt": b"mine"}


def test_the_cache_holds_each_contents_once(s3: Address, make_folder: Make, shared_s3: Store, tmp_path: Path) -> None:
    send(bundle(make_folder()), s3)
    first = bring_to_cache(s3, tmp_path / "cache")
    shared_s3.forget()
    assert bring_to_cache(s3, tmp_path / "cache") == first
    assert not any("model.safetensors" in one["PATH_INFO"] for one in shared_s3.requests())
    assert first.name == "small"
    send(bundle(make_folder("other", seed=1)), s3)
    second = bring_to_cache(s3, tmp_path / "cache")
    assert files_of(second) != files_of(first)


def test_a_store_that_refuses_newer_checksum_headers_is_served(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target = make_folder(**{"big.safetensors": 20_000_000}), Address("s3", BUCKET, "x")
    with s3_server(tmp_path, "--refuse-checksums") as store:
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")  # for the bare client
        use_store(monkeypatch, store)
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
        with pytest.raises(TransferError, match="NotImplemented"):
            send(bundle(folder), target)
        monkeypatch.delenv("AWS_REQUEST_CHECKSUM_CALCULATION")
        send(bundle(folder), target)
        bring(target, tmp_path / "back")
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
            send(bundle(make_folder()), target)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "missing.pem"))
        with pytest.raises(UsageError, match="no such file"):
            send(bundle(make_folder()), target)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        send(bundle(make_folder()), target)
        bring(target, tmp_path / "back")


def test_errors_name_the_place_and_never_the_key(
    s3: Address, make_folder: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = bundle(make_folder())
    found: list[LabError] = []

    def failing(target: Address) -> str:
        with pytest.raises(LabError) as caught:
            send(ours, target)
        found.append(caught.value)
        assert caught.value.fix
        return str(caught.value)

    assert "NoSuchBucket" in failing(Address("s3", "another", "x"))
    monkeypatch.setenv("AWS_S3_ENDPOINT", "http://127.0.0.1:9")
    assert "nothing answers" in failing(s3)
    monkeypatch.setenv("AWS_S3_ENDPOINT", "http://store.example:9000")
    assert "without TLS" in failing(s3)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_S3_ENDPOINT", "http://127.0.0.1:9")
    assert "AWS_SECRET_ACCESS_KEY is not set" in failing(s3)
    for error in found:
        assert CANARY not in repr(error)
        assert error.__cause__ is None, "boto's own error may hold a signed address"


def test_a_full_disk_keeps_what_arrived_and_says_so(s3: Address, make_folder: Make, tmp_path: Path) -> None:
    send(bundle(make_folder(**{"big.safetensors": BIG})), s3)
    script = (
        "import resource, sys; from pathlib import Path; from labkit.transfer import *;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000)); import signal;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); bring(parse(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(s3), str(tmp_path / "back")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "TransferError" in done.stderr
    assert "File too large" in done.stderr
    assert not (tmp_path / "back").exists()
    bring(s3, tmp_path / "back")
    verify_manifest(tmp_path / "back")
