"""What only the hub does: commits, revisions, private and foreign repositories; by the stand-in that speaks its API."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from labkit.errors import CheckpointError, LabError, TransferError, UsageError
from labkit.files import verify_manifest
from labkit.transfer import Address, bundle, download, download_to_cache, parse, upload
from tests.transfer.conftest import Store, files_of, hub_stand_in, use_hub
from tests.transfer.hub_stand_in import TOKEN

Make = Callable[..., Path]


def test_all_of_it_appears_with_one_commit_in_a_private_repository(
    hub: Address, make_folder: Make, shared_hub: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(bundle(make_folder()), hub)
    assert len(shared_hub.requests("POST", of="/commit/")) == 1
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match="nothing lies there"):
        download(hub, tmp_path / "back")


def test_an_older_revision_can_be_downloaded(hub: Address, make_folder: Make, tmp_path: Path) -> None:
    first, second = make_folder(), make_folder("second", seed=1)
    upload(bundle(first), hub)
    upload(bundle(second), hub)
    download(Address("hub", hub.name, f"{1:040x}"), tmp_path / "old")
    download(hub, tmp_path / "new")
    assert files_of(tmp_path / "old") == files_of(first)
    assert files_of(tmp_path / "new") == files_of(second)
    with pytest.raises(TransferError, match="404"):
        download(Address("hub", hub.name, "v9"), tmp_path / "back")


def test_a_repository_that_labkit_did_not_make_is_verified_by_what_the_hub_says(hub: Address, tmp_path: Path) -> None:
    api = HfApi(endpoint=os.environ["HF_ENDPOINT"], token=TOKEN)
    contents = {"config.json": b"{}", "model.safetensors": os.urandom(2_000_000), "pytorch_model.bin": b"pickle"}
    api.create_repo(hub.name, private=True)
    for name, data in contents.items():
        api.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id=hub.name)
    download(hub, tmp_path / "back", keep=lambda name: not name.endswith(".bin"))
    assert verify_manifest(tmp_path / "back")["files"].keys() == {"config.json", "model.safetensors"}
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == contents["model.safetensors"]
    first = download_to_cache(hub, tmp_path / "cache", keep=lambda name: name == "config.json")
    assert first.name == hub.last


def test_a_file_that_was_changed_there_is_not_taken(hub: Address, make_folder: Make, tmp_path: Path) -> None:
    upload(bundle(make_folder()), hub)
    api = HfApi(endpoint=os.environ["HF_ENDPOINT"], token=TOKEN)
    api.upload_file(path_or_fileobj=bytes(3_000_000), path_in_repo="model.safetensors", repo_id=hub.name)
    with pytest.raises(CheckpointError, match=r"model.safetensors has other contents"):
        download(hub, tmp_path / "back")


def test_a_redirect_without_tls_is_not_followed(
    make_folder: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_stand_in(tmp_path, "--redirect", "http://192.0.2.1/") as hub:  # an address that nobody has
        use_hub(monkeypatch, hub)
        upload(bundle(make_folder()), parse("hub:workshop/small"))
        with pytest.raises(TransferError, match=r"redirects to 192.0.2.1, without TLS"):
            download(parse("hub:workshop/small"), tmp_path / "back")


def test_errors_say_what_to_do_and_never_the_token(
    hub: Address, make_folder: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    ours = bundle(make_folder())

    def failing(call: Callable[[], Any], kind: type[LabError]) -> str:
        with pytest.raises(kind) as caught:
            call()
        assert caught.value.fix
        assert caught.value.__cause__ is None, "the hub's own error may hold a signed address"
        assert TOKEN not in repr(caught.value)
        return str(caught.value)

    assert "nothing lies there" in failing(lambda: download(hub, tmp_path / "back"), CheckpointError)
    monkeypatch.delenv("HF_TOKEN")
    assert "HF_TOKEN" in failing(lambda: upload(ours, hub), TransferError)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "can't be reached" in failing(lambda: upload(ours, hub), TransferError)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    assert "without TLS" in failing(lambda: upload(ours, hub), UsageError)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in failing(lambda: upload(ours, hub), UsageError)
