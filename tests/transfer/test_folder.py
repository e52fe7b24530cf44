"""To a folder and from one: a shared disk, a stick; whole or not at all, links refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from labkit.errors import CheckpointError, DataError, TransferError, UsageError
from labkit.manifest import MANIFEST, read_manifest, verify_manifest
from labkit.transfer import Address, bring, bundle, parse, plan, send

Make = Callable[..., Path]


@pytest.fixture
def target(tmp_path: Path) -> Address:
    return parse(str(tmp_path / "stick" / "small"))


def test_a_folder_goes_to_another_and_comes_back(make_folder: Make, target: Address, tmp_path: Path) -> None:
    folder, moved = make_folder(), []
    found = send(bundle(folder), target, moved.append)
    assert sum(moved) == found.size == bundle(folder).size
    assert verify_manifest(Path(target.name)) == verify_manifest(folder)
    bring(target, tmp_path / "back")
    assert verify_manifest(tmp_path / "back") == verify_manifest(folder)
    assert [path.name for path in Path(target.name).parent.iterdir()] == ["small"], "no stage is left"


def test_a_folder_that_was_sent_is_replaced_whole_and_any_other_is_left_alone(
    make_folder: Make, target: Address
) -> None:
    send(bundle(make_folder(**{"old.json": 5})), target)
    other = bundle(make_folder("other", seed=1))
    assert plan(other, target).gone == ("old.json",)
    send(other, target)
    assert read_manifest(Path(target.name))["files"].keys() == other.files.keys()
    assert not (Path(target.name) / "old.json").exists()
    assert send(other, target).whole
    (Path(target.name) / "config.json").write_bytes(bytes(700))  # its size, and other contents
    assert not plan(other, target).whole
    send(other, target)
    verify_manifest(Path(target.name))
    (Path(target.name) / MANIFEST).unlink()
    with pytest.raises(UsageError, match="is there already"):
        send(bundle(make_folder("third", seed=2)), target)


def test_a_damaged_folder_is_not_sent(make_folder: Make, target: Address) -> None:
    folder = make_folder()
    (folder / "model.safetensors").write_bytes(bytes(3_000_000))
    with pytest.raises(CheckpointError, match=r"model.safetensors has other contents"):
        send(bundle(folder), target)
    assert not Path(target.name).exists()


def test_a_folder_without_a_manifest_is_hashed_and_gets_one(tmp_path: Path, target: Address) -> None:
    plain = tmp_path / "plain"
    (plain / ".cache").mkdir(parents=True)
    (plain / "config.json").write_text("{}")
    (plain / ".cache" / "lock").write_text("")
    send(bundle(plain), target)
    assert verify_manifest(Path(target.name))["files"].keys() == {"config.json"}


def test_links_are_refused_both_ways(make_folder: Make, target: Address, tmp_path: Path) -> None:
    folder = make_folder()
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="is a link"):
        bundle(folder)
    (folder / "link").unlink()
    send(bundle(folder), target)
    (Path(target.name) / "config.json").unlink()
    (Path(target.name) / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="is a link"):
        bring(target, tmp_path / "back")


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no folder"):
        bundle(tmp_path / "nowhere")
    with pytest.raises(TransferError, match="is no folder"):
        bring(parse(str(tmp_path / "nowhere")), tmp_path / "back")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no file"):
        bundle(tmp_path / "empty")
