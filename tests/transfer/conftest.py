"""A real S3 server on loopback, folders to send, and an environment with keys."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from labkit.manifest import write_manifest
from labkit.transfer import Address
from tests.conftest import ROOT

CANARY = "CANARY-7f3e-SECRET"  # the secret key of every test: it must turn up nowhere
BUCKET = "workshop"


@dataclass(frozen=True)
class Store:
    """A running S3 server. log: one JSON object for each request."""

    url: str
    log: Path

    def requests(self, method: str = "") -> list[dict[str, str]]:
        found = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [one for one in found if method in ("", one["REQUEST_METHOD"])]

    def forget(self) -> None:
        self.log.unlink(missing_ok=True)


@contextmanager
def s3_server(folder: Path, *options: str) -> Iterator[Store]:
    """moto's server as a process of its own, gone at the end."""
    with _server("s3_server", folder, *options) as store:
        yield store


@contextmanager
def hub_stand_in(folder: Path, *options: str) -> Iterator[Store]:
    """The hub's stand-in as a process of its own, gone at the end."""
    with _server("hub_stand_in", folder, *options) as store:
        yield store


@contextmanager
def _server(module: str, folder: Path, *options: str) -> Iterator[Store]:
    log = folder / "requests.jsonl"
    command = [sys.executable, "-m", f"tests.transfer.{module}", "--log", str(log), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        try:
            yield Store(server.stdout.readline().strip(), log)
        finally:
            server.kill()


@pytest.fixture(scope="package")
def shared_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with s3_server(tmp_path_factory.mktemp("s3")) as store:
        yield store


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


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, shared_s3: Store) -> Iterator[Any]:
    """A bare boto3 client of an empty bucket, in an environment that labkit finds it by."""
    client = use_store(monkeypatch, shared_s3)
    shared_s3.forget()
    yield client
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for item in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=item["Key"])
    for upload in client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
        client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])


@pytest.fixture
def s3(bare: Any) -> Address:
    """Where to send to."""
    return Address("s3", BUCKET, "models/small")


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
