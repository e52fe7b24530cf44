"""A real S3 server and the hub's stand-in on loopback, folders to send, and an environment with keys."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from labkit.files import write_manifest
from labkit.transfer import Address, parse
from tests.conftest import ROOT, clean_environment
from tests.transfer.hub_stand_in import TOKEN

CANARY = "CANARY-7f3e-SECRET"  # the secret key of every test: it must turn up nowhere
BUCKET = "workshop"
DEADLINE_SECONDS = 30


@dataclass(frozen=True)
class Store:
    """A running server. log: one JSON object for each request."""

    url: str
    log: Path

    def requests(self, *methods: str, of: str = "") -> list[dict[str, str]]:
        found = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [one for one in found if one["REQUEST_METHOD"] in methods and of in one["PATH_INFO"]]

    def forget(self) -> None:
        self.log.unlink(missing_ok=True)


@contextmanager
def s3_server(folder: Path, *options: str, module: str = "s3_server") -> Iterator[Store]:
    """moto's server, or the hub's stand-in, as a process of its own, gone at the end."""
    log = folder / "requests.jsonl"
    command = [sys.executable, "-m", f"tests.transfer.{module}", "--log", str(log), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        try:
            yield Store(server.stdout.readline().strip(), log)
        finally:
            server.kill()


hub_stand_in = partial(s3_server, module="hub_stand_in")


@pytest.fixture(scope="package")
def shared_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with s3_server(tmp_path_factory.mktemp("s3")) as store:
        yield store


@pytest.fixture(scope="package")
def shared_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with hub_stand_in(tmp_path_factory.mktemp("hub")) as found:
        yield found


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, endpoint or configuration of the developer reaches a test."""
    names = "AWS_S3_ENDPOINT AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_S3_BUCKET AWS_CA_BUNDLE"
    for name in [*names.split(), "AWS_DEFAULT_REGION", "AWS_PROFILE", "HF_TOKEN", "HF_ENDPOINT"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-keys"))


def use_store(monkeypatch: pytest.MonkeyPatch, store: Store) -> Any:
    """Points the environment at a store, and makes the bucket with a client that is not ours; returns that client."""
    import boto3

    monkeypatch.setenv("AWS_S3_ENDPOINT", store.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "attendee")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    client = boto3.client("s3", endpoint_url=store.url, region_name="us-east-1")
    client.create_bucket(Bucket=BUCKET)
    return client


def use_hub(monkeypatch: pytest.MonkeyPatch, hub: Store) -> None:
    """Points this process and its children at a hub, with a token, and without Xet."""
    from huggingface_hub import constants

    keys = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, shared_s3: Store) -> Iterator[Any]:
    """A bare boto3 client of an empty bucket, in an environment that labkit finds it by."""
    client = use_store(monkeypatch, shared_s3)
    shared_s3.forget()
    yield client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=item["Key"])


@pytest.fixture
def s3(bare: Any) -> Address:
    """Where to send to."""
    return Address("s3", BUCKET, "models/small")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, shared_hub: Store, request: pytest.FixtureRequest) -> Address:
    """A repository of its own for each test."""
    use_hub(monkeypatch, shared_hub)
    shared_hub.forget()
    return parse(f"hub:workshop/{request.node.name[:60].replace('[', '-').replace(']', '')}")


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Makes a published folder of files by name and size, with random contents."""

    def make(name: str = "small", seed: int = 0, **more: int) -> Path:
        rng, folder = random.Random(seed), tmp_path / name
        sizes = {"config.json": 700, "model.safetensors": 3_000_000, "sub/tokenizer.json": 0} | more
        for file, size in sizes.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rng.randbytes(size))
        write_manifest(folder, base="tiny", variant="fp8-dynamic")
        return folder

    return make


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed_when(condition: Callable[[], object], call: str, folder: Path) -> None:
    """Runs a call on a folder in a process of its own, and kills it when a condition holds."""
    code = f"import sys; from pathlib import Path; from labkit.transfer import *; {call}"
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], cwd=ROOT, stderr=subprocess.DEVNULL) as child:
        try:
            deadline = time.monotonic() + DEADLINE_SECONDS
            while not condition():
                assert child.poll() is None, "it ended before it came so far"
                assert time.monotonic() < deadline, "it did not come so far"
                time.sleep(0.02)
        finally:
            child.kill()


def labkit(*words: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command line; by default in this environment, but for a developer's settings."""
    command = [sys.executable, "-m", "labkit.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env or clean_environment())
