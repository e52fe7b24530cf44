"""A folder of 1 GB to a bucket and back: labkit against boto3's transfer manager, on a server on loopback.

Both sides without checksum headers, as is labkit's setting. With boto3's own (CRC32) this server computes a CRC32 of
each object in place of a CRC64, half a second less for 500 MB: a difference of the server's, not of the sides.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT, SIDES, interleaved, timed
from benchmarks.results import Bar, Result, Run
from labkit.errors import DataError
from labkit.manifest import verify_manifest, write_manifest

DEADLINE_SECONDS = 300.0
SHARDS, SHARD_BYTES, BLOCK_BYTES = 8, 125_000_000, 5_000_000
PAIRS = 3
MOST = 1.15
BUCKET = "benchmarks"
WAYS = {"send": "Send 1 GB to S3", "bring": "Bring 1 GB from S3, verified"}


def run_send(scratch: Path, pairs: int | None) -> Result:
    """Upload: both sides send the same folder, each to a prefix of its own."""
    return _run("send", scratch, pairs)


def run_bring(scratch: Path, pairs: int | None) -> Result:
    """Download: both sides bring the same objects. Raises DataError unless they end with the same bytes."""
    return _run("bring", scratch, pairs)


def _run(way: str, scratch: Path, pairs: int | None) -> Result:
    folder = _folder(scratch / "model")
    with _server() as environment:

        def side(script: str, number: int, way: str, where: Path) -> Run:
            command = [sys.executable, str(SIDES / f"{script}_transfer.py"), way, str(where), BUCKET, script]
            log = scratch / f"{script}-{way}-{number}.log"
            return timed(command, log, deadline_seconds=DEADLINE_SECONDS, env=environment, cwd=ROOT)

        def one(script: str) -> Run:
            def measured(number: int) -> Run:
                if way == "send":
                    _empty(environment, script)
                    return side(script, number, "send", folder)
                back = scratch / f"{script}-back"
                shutil.rmtree(back, ignore_errors=True)
                found = side(script, number, "bring", back)
                if verify_manifest(back)["files"] != verify_manifest(folder)["files"]:
                    raise DataError(f"{script} brought other files than were sent")
                return found

            return measured

        if way == "bring":
            for script in ("labkit", "bare"):
                side(script, 0, "send", folder)
        ours, theirs = interleaved(one("labkit"), one("bare"), pairs or PAIRS)
    return Result(
        name=f"s3-{way}",
        what=WAYS[way],
        against="boto3's transfer manager, file after file, neither side with checksum headers; it verifies nothing",
        bars=(Bar("wall_seconds", MOST), Bar("peak_bytes")),
        ours=tuple(ours),
        theirs=tuple(theirs),
        checked="both sides' files have the SHA-256 of the manifest" if way == "bring" else "",
    )


def _folder(folder: Path) -> Path:
    """Shards of random bytes and what lies beside them in a checkpoint, with a manifest."""
    rng = random.Random(0)
    folder.mkdir()
    for shard in range(SHARDS):
        with open(folder / f"model-{shard}.safetensors", "wb") as file:
            for _ in range(SHARD_BYTES // BLOCK_BYTES):
                file.write(rng.randbytes(BLOCK_BYTES))
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        (folder / name).write_bytes(rng.randbytes(5_000))
    write_manifest(folder)
    return folder


@contextmanager
def _server() -> Iterator[dict[str, str]]:
    """moto's server in a process of its own; gives the environment that finds it."""
    command = [sys.executable, "-m", "tests.transfer.s3_server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        try:
            keys = {
                "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
                "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
            }
            keys |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
            environment = {"AWS_S3_ENDPOINT": server.stdout.readline().strip(), **keys, "PYTHONPATH": str(ROOT)}
            _client(environment).create_bucket(Bucket=BUCKET)
            yield environment
        finally:
            server.kill()


def _client(environment: dict[str, str]) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_S3_ENDPOINT"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_DEFAULT_REGION"],
    )


def _empty(environment: dict[str, str], prefix: str) -> None:
    client = _client(environment)
    for item in client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/").get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
