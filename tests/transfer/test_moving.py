"""To each kind of place and back: identical by SHA-256, whole or not at all, and going on after a kill."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from labkit.errors import CheckpointError, DataError, LabError, TransferError, UsageError
from labkit.files import MANIFEST, read_manifest, verify_manifest
from labkit.transfer import Address, arrived, bundle, download, download_to_cache, listed, parse, peek, plan, upload
from tests.transfer.conftest import BUCKET, Store, files_of, hub_stand_in, killed_when, s3_server, use_hub, use_store

Make = Callable[..., Path]
BIG = 20_000_000  # bytes: more than one part


@pytest.fixture(params=["folder", "s3", "hub"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    if request.param == "folder":
        return parse(str(tmp_path / "stick" / "small"))
    found: Address = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def stick(tmp_path: Path) -> Address:
    return parse(str(tmp_path / "stick" / "small"))


def test_a_folder_goes_out_and_comes_back_identical(place: Address, make_folder: Make, tmp_path: Path) -> None:
    folder, sent, came = make_folder(**{"big.safetensors": BIG}), [], []
    found = upload(bundle(folder), place, sent.append)
    assert sum(sent) == found.size == bundle(folder).size > BIG
    assert not found.there
    (tmp_path / "in").mkdir()
    download(place, tmp_path / "in" / "back", came.append)
    assert sum(came) == sum(sent)
    assert files_of(tmp_path / "in" / "back") == files_of(folder)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["back"], "no stage is left"
    assert peek(place, "config.json") == (folder / "config.json").read_bytes()
    assert listed(place).keys() == bundle(folder).files.keys()


def test_what_is_there_is_not_sent_again(
    place: Address, make_folder: Make, shared_s3: Store, shared_hub: Store
) -> None:
    ours, moved = bundle(make_folder(**{"big.safetensors": BIG})), []
    writing = ("PUT", "POST", "DELETE")
    shared_s3.forget()
    shared_hub.forget()
    assert plan(ours, place).send.keys() == ours.files.keys()
    assert shared_s3.requests(*writing) == shared_hub.requests(*writing) == [], "a plan sends nothing"
    upload(ours, place)
    shared_s3.forget()
    shared_hub.forget()
    again = upload(ours, place, moved.append)
    assert again.whole
    assert again.there.keys() == ours.files.keys()
    assert shared_s3.requests(*writing) == shared_hub.requests(*writing) == []
    assert sum(moved) == ours.size


def test_only_what_changed_is_sent_and_what_is_no_longer_named_goes_away(
    place: Address, make_folder: Make, tmp_path: Path
) -> None:
    upload(bundle(make_folder(**{"old.safetensors": 10})), place)
    (tmp_path / "card.md").write_text("---\nlicense: apache-2.0\n---\n# card\n")
    second = bundle(make_folder("second"), {"README.md": tmp_path / "card.md"})
    found = upload(second, place)
    assert found.send.keys() == ({"README.md"} if place.kind != "folder" else second.files.keys())
    assert found.gone == ("old.safetensors",)
    download(place, tmp_path / "back")
    assert read_manifest(tmp_path / "back")["files"].keys() == files_of(tmp_path / "back").keys() - {MANIFEST}
    assert (tmp_path / "back" / "README.md").read_text() == (tmp_path / "card.md").read_text()
    if place.kind == "folder":
        assert files_of(Path(place.name)) == files_of(tmp_path / "back")
        (Path(place.name) / "config.json").write_bytes(bytes(700))  # its size, and other contents
        assert not plan(second, place).whole


def test_a_damaged_folder_is_not_sent_and_what_is_there_stays(
    place: Address, make_folder: Make, tmp_path: Path
) -> None:
    upload(bundle(make_folder()), place)
    other = make_folder("other", seed=1)
    (other / "sub" / "tokenizer.json").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="has 1 bytes, not 0"):
        bundle(other)
    (other / "sub" / "tokenizer.json").write_bytes(b"")
    (other / "model.safetensors").write_bytes(bytes(3_000_000))  # the size is right, the contents are not
    with pytest.raises(CheckpointError, match=r"model.safetensors has other contents"):
        upload(bundle(other), place)
    download(place, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(tmp_path / "small")


@contextmanager
def slow(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, Address]]:
    """A server of its own that answers slowly, and a place there."""
    start, use = {"s3": (s3_server, use_store), "hub": (hub_stand_in, use_hub)}[kind]
    with start(folder, "--seconds", "0.2") as store:
        use(monkeypatch, store)
        store.forget()  # that the bucket was made
        yield store, parse({"s3": f"s3://{BUCKET}/x", "hub": "hub:workshop/x"}[kind])


@pytest.mark.parametrize(("kind", "files"), [("s3", 5), ("hub", 3)])  # that an upload puts one by one
def test_an_upload_that_was_killed_never_looks_whole_and_goes_on_file_by_file(
    kind: str, files: int, make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(**{"a.safetensors": 2_000_000, "z.safetensors": 2_000_000})
    with slow(kind, tmp_path, monkeypatch) as (store, target):
        if kind == "s3":  # what was there before must lose its claim to be whole; a commit of the hub is atomic
            upload(bundle(make_folder("before", seed=1)), target)
            store.forget()
        call = f"upload(bundle(Path(sys.argv[1])), parse('{target}'))"
        killed_when(lambda: len(store.requests("PUT")) >= 2, call, folder)
        with pytest.raises(CheckpointError, match=f"no {MANIFEST}"):
            download(target, tmp_path / "back")
        assert not (tmp_path / "back").exists()
        store.forget()
        upload(bundle(folder), target)
        assert 1 <= len(store.requests("PUT")) < files, "one had arrived at least"
        download(target, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(folder)


@pytest.mark.parametrize("kind", ["s3", "hub"])
def test_a_download_that_was_killed_goes_on_file_by_file(
    kind: str, make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, back = make_folder(**{"z.safetensors": BIG}), tmp_path / "back"
    with slow(kind, tmp_path, monkeypatch) as (store, source):
        upload(bundle(folder), source)
        store.forget()
        call = f"download(parse('{source}'), Path(sys.argv[1]))"
        killed_when(lambda: store.requests("GET", of="z.safetensors"), call, back)
        assert not back.exists()
        assert arrived(back) >= 3_000_000
        store.forget()
        download(source, back)
        assert not store.requests("GET", of="/model.safetensors"), "what had arrived is not asked for again"
    assert files_of(back) == files_of(folder)


def test_a_download_that_breaks_off_keeps_what_was_verified(stick: Address, make_folder: Make, tmp_path: Path) -> None:
    folder, back, moved = make_folder(**{"big.safetensors": BIG}), tmp_path / "in" / "back", []
    upload(bundle(folder), stick)

    def tunnel(count: int) -> None:
        moved.append(count)
        if len(moved) == 3:
            raise LabError("the train entered a tunnel")

    with pytest.raises(LabError, match="tunnel"):
        download(stick, back, tunnel)
    assert (back.exists(), arrived(back)) == (False, BIG)  # it came first, in two blocks
    (back.with_name(".fetch-back") / "files" / "big.safetensors").write_bytes(bytes(BIG))
    (back.with_name(".fetch-back") / "files" / "stray.json").write_text("of another try")
    download(stick, back)
    assert files_of(back) == files_of(folder)
    assert [path.name for path in back.parent.iterdir()] == ["back"]


def test_two_downloads_to_one_folder_exclude_each_other(stick: Address, make_folder: Make, tmp_path: Path) -> None:
    upload(bundle(make_folder()), stick)
    order: list[str] = []

    def one(name: str) -> None:
        def moved(_: int) -> None:
            order.append(name)
            time.sleep(0.1)

        download(stick, tmp_path / "in" / "back", moved)

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, "ab"))
    assert "".join(order) in ("aab", "bba"), "the second found the folder of the first"
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["back"]


def test_a_folder_that_is_not_these_files_is_left_alone(stick: Address, make_folder: Make, tmp_path: Path) -> None:
    upload(bundle(make_folder()), stick)
    back, own = tmp_path / "back", tmp_path / "own"
    download(stick, back)
    download(stick, back)  # the very same: nothing to do
    (back / "config.json").write_text("mine")
    with pytest.raises(UsageError, match=r"config.json differs"):
        download(stick, back)
    assert (back / "config.json").read_text() == "mine"
    own.mkdir()
    (own / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="other files"):
        download(stick, own)
    with pytest.raises(UsageError, match="labkit did not make it"):
        upload(bundle(make_folder("other", seed=1)), parse(str(own)))
    assert files_of(own) == {"notes.txt": b"mine"}


def test_a_folder_without_a_manifest_is_hashed_and_gets_one(tmp_path: Path, stick: Address) -> None:
    plain = tmp_path / "plain"
    (plain / ".cache").mkdir(parents=True)
    (plain / "config.json").write_text("{}")
    (plain / ".cache" / "lock").write_text("")
    upload(bundle(plain), stick)
    assert verify_manifest(Path(stick.name))["files"].keys() == {"config.json"}


def test_links_are_refused_both_ways(make_folder: Make, stick: Address, tmp_path: Path) -> None:
    folder = make_folder()
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="is a link"):
        bundle(folder)
    (folder / "link").unlink()
    upload(bundle(folder), stick)
    (Path(stick.name) / "config.json").unlink()
    (Path(stick.name) / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="is a link"):
        download(stick, tmp_path / "back")


def test_what_is_not_there_or_has_no_room_here_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        bundle(tmp_path / "nowhere")
    with pytest.raises(TransferError, match="is no folder"):
        download(parse(str(tmp_path / "nowhere")), tmp_path / "back")
    huge = tmp_path / "huge"
    huge.mkdir()
    with pytest.raises(UsageError, match="holds no file"):
        bundle(huge)
    with open(huge / "model.safetensors", "wb") as file:
        file.truncate(2**43)  # of holes
    listed = {"model.safetensors": {"bytes": 2**43, "sha256": "0" * 64}}
    (huge / MANIFEST).write_text(json.dumps({"files": listed}))
    with pytest.raises(TransferError, match=r"8796\.1 GB are to come"):
        download(parse(str(huge)), tmp_path / "back")


def test_the_cache_holds_each_contents_once(s3: Address, make_folder: Make, shared_s3: Store, tmp_path: Path) -> None:
    upload(bundle(make_folder()), s3)
    first = download_to_cache(s3, tmp_path / "cache")
    shared_s3.forget()
    assert download_to_cache(s3, tmp_path / "cache") == first
    assert not shared_s3.requests("GET", of="model.safetensors")
    assert first.name == "small"
    upload(bundle(make_folder("other", seed=1)), s3)
    assert files_of(download_to_cache(s3, tmp_path / "cache")) != files_of(first)
