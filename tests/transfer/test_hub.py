"""To the hub and back, by `huggingface_hub` and the stand-in that speaks its API."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from labkit.errors import CheckpointError, LabError, TransferError, UsageError
from labkit.manifest import MANIFEST, verify_manifest
from labkit.transfer import Address, bring, bring_to_cache, bundle, parse, plan, send
from tests.conftest import ROOT
from tests.transfer.conftest import Store, hub_stand_in
from tests.transfer.hub_stand_in import TOKEN

Make = Callable[..., Path]
BIG, RANGES = 70_000_000, 5
DEADLINE_SECONDS = 30


@pytest.fixture(scope="module")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with hub_stand_in(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[Store], None]:
    """Points this process and its children at a hub, with a token, and without Xet."""
    from huggingface_hub import constants

    def point(hub: Store) -> None:
        for name, value in {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    return point


@pytest.fixture
def hub(shared_hub: Store, use: Callable[[Store], None], request: pytest.FixtureRequest) -> Address:
    """A repository of its own for each test."""
    use(shared_hub)
    shared_hub.forget()
    return parse(f"hub:workshop/{request.node.name[:60].replace('[', '-').replace(']', '')}")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_goes_out_and_comes_back_identical(hub: Address, make_folder: Make, tmp_path: Path) -> None:
    folder, moved = make_folder(**{"big.safetensors": BIG}), []
    found = send(bundle(folder), hub, moved.append)
    assert sum(moved) == found.size == bundle(folder).size
    came: list[int] = []
    with pytest.MonkeyPatch.context() as nobody:
        nobody.delenv("HF_TOKEN")  # a repository that is made is private
        with pytest.raises(CheckpointError, match="nothing lies there"):
            bring(hub, tmp_path / "back")
    bring(hub, tmp_path / "back", came.append)
    assert sum(came) == sum(moved)
    assert files_of(tmp_path / "back") == files_of(folder)


def test_all_of_it_appears_with_one_commit(hub: Address, make_folder: Make, shared_hub: Store, tmp_path: Path) -> None:
    folder = make_folder()
    send(bundle(folder), hub)
    commits = [one["PATH_INFO"] for one in shared_hub.requests("POST") if "/commit/" in one["PATH_INFO"]]
    assert len(commits) == 1
    assert plan(bundle(folder), hub).whole
    shared_hub.forget()
    assert send(bundle(folder), hub).whole
    assert shared_hub.requests("POST") == shared_hub.requests("PUT") == []
    card = tmp_path / "card.md"
    card.write_text("---\nlicense: apache-2.0\n---\n# card\n")
    assert send(bundle(folder, {"README.md": card}), hub).send.keys() == {"README.md"}
    assert send(bundle(folder), hub).gone == ("README.md",)
    bring(hub, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(folder)


def test_an_older_revision_can_be_brought(hub: Address, make_folder: Make, tmp_path: Path) -> None:
    first, second = make_folder(), make_folder("second", seed=1)
    send(bundle(first), hub)
    send(bundle(second), hub)
    bring(Address("hub", hub.name, f"{1:040x}"), tmp_path / "old")
    bring(hub, tmp_path / "new")
    assert files_of(tmp_path / "old") == files_of(first)
    assert files_of(tmp_path / "new") == files_of(second)


def test_a_repository_that_labkit_did_not_send_is_verified_by_what_the_hub_says(hub: Address, tmp_path: Path) -> None:
    api = HfApi(endpoint=os.environ["HF_ENDPOINT"], token=TOKEN)
    contents = {"config.json": b"{}", "model.safetensors": os.urandom(2_000_000), "pytorch_model.bin": b"pickle"}
    api.create_repo(hub.name, private=True)
    for name, data in contents.items():
        api.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id=hub.name)
    bring(hub, tmp_path / "back", keep=lambda name: not name.endswith(".bin"))
    assert verify_manifest(tmp_path / "back")["files"].keys() == {"config.json", "model.safetensors"}
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == contents["model.safetensors"]
    first = bring_to_cache(hub, tmp_path / "cache", keep=lambda name: name == "config.json")
    assert first.name == hub.last


def test_bringing_that_was_killed_goes_on_where_it_was(
    make_folder: Make, tmp_path: Path, use: Callable[[Store], None]
) -> None:
    folder, back = make_folder(**{"big.safetensors": BIG}), tmp_path / "back"
    with hub_stand_in(tmp_path, "--seconds", "0.2") as slow:
        use(slow)
        source = parse("hub:workshop/killed")
        send(bundle(folder), source)
        killed_when(
            f"bring(parse('{source}'), Path(sys.argv[1]))", back, lambda: asked(slow, "GET", "big.safetensors") >= 2
        )
        assert asked(slow, "GET", "big.safetensors") < RANGES
        assert not back.exists()
        slow.forget()
        bring(source, back)
        assert asked(slow, "GET", "big.safetensors") < RANGES
    assert files_of(back) == files_of(folder)


def test_sending_that_was_killed_sends_no_large_file_again(
    make_folder: Make, tmp_path: Path, use: Callable[[Store], None]
) -> None:
    folder = make_folder(**{"a.safetensors": 2_000_000, "z.safetensors": 2_000_000})
    with hub_stand_in(tmp_path, "--seconds", "0.3") as slow:
        use(slow)
        target = parse("hub:workshop/killed")
        killed_when(f"send(bundle(Path(sys.argv[1])), parse('{target}'))", folder, lambda: asked(slow, "PUT") >= 2)
        with pytest.raises(CheckpointError, match=MANIFEST):
            bring(target, tmp_path / "back")
        slow.forget()
        send(bundle(folder), target)
        assert 1 <= asked(slow, "PUT") <= 2, "of three large files one had arrived at least"
        bring(target, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(folder)


def asked(hub: Store, method: str, part: str = "") -> int:
    return sum(part in one["PATH_INFO"] for one in hub.requests(method))


def killed_when(call: str, folder: Path, condition: Callable[[], bool]) -> None:
    code = f"import sys; from pathlib import Path; from labkit.transfer import *; {call}"
    environment = {**os.environ, "LABKIT_TRANSFER_CONNECTIONS": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "it did not come so far"
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)


def test_errors_say_what_to_do_and_never_the_token(
    hub: Address, make_folder: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = bundle(make_folder())

    def failing(call: Callable[[], Any], kind: type[LabError]) -> str:
        with pytest.raises(kind) as caught:
            call()
        assert caught.value.fix
        assert TOKEN not in repr(caught.value)
        return str(caught.value)

    assert "nothing lies there" in failing(lambda: bring(hub, tmp_path / "back"), CheckpointError)
    monkeypatch.delenv("HF_TOKEN")
    assert "HF_TOKEN" in failing(lambda: send(ours, hub), TransferError)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "can't be reached" in failing(lambda: send(ours, hub), TransferError)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    assert "without TLS" in failing(lambda: send(ours, hub), UsageError)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in failing(lambda: send(ours, hub), UsageError)


def test_a_revision_that_is_not_there_is_an_error(hub: Address, make_folder: Make, tmp_path: Path) -> None:
    send(bundle(make_folder()), hub)
    with pytest.raises(TransferError, match="404"):
        bring(Address("hub", hub.name, "v9"), tmp_path / "back")


def test_a_file_that_was_changed_there_is_not_taken(hub: Address, make_folder: Make, tmp_path: Path) -> None:
    send(bundle(make_folder()), hub)
    api = HfApi(endpoint=os.environ["HF_ENDPOINT"], token=TOKEN)
    api.upload_file(path_or_fileobj=bytes(3_000_000), path_in_repo="model.safetensors", repo_id=hub.name)
    with pytest.raises(CheckpointError, match=r"model.safetensors has other contents"):
        bring(hub, tmp_path / "back")
