"""An S3 bucket as a place: the workbench's data connection, from the environment only.

    AWS_S3_ENDPOINT        the store's address, empty for Amazon's own; plain http on loopback only
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_DEFAULT_REGION, AWS_S3_BUCKET
    AWS_CA_BUNDLE          the certificate of a store that signed its own; TLS is always verified
    AWS_REQUEST_CHECKSUM_CALCULATION, AWS_RESPONSE_CHECKSUM_VALIDATION
                           `when_supported` adds checksum headers; here they are off, since some stores refuse them

A large file goes in parts, several at once. A transfer that was cut off leaves its parts at the store (give the bucket
a lifecycle rule for those that nobody comes back to); the next one finds them and sends the rest. What is there is
compared by MD5, which S3 calls ETag: only to save sending, what is verified is SHA-256. A store whose ETags are no MD5
(KMS encryption) gets everything again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import Any

from labkit.errors import TransferError, UsageError
from labkit.manifest import MANIFEST
from labkit.transfer.address import Address, refuse_plain_http
from labkit.transfer.bundle import File
from labkit.transfer.store import CutOff, Entry, Progress, connections

ENDPOINT = "AWS_S3_ENDPOINT"
CA_BUNDLE = "AWS_CA_BUNDLE"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
PART_BYTES = 8 * 2**20
MOST_PARTS = 10_000  # of one file, S3's own limit
FIXES = {
    "NoSuchBucket": "make the bucket, or check its name",
    "AccessDenied": "ask for the right to list, read and write there",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY and this machine's clock",
    "403": "check the keys, and ask for the right to list, read and write there",
}


def _client() -> Any:
    """boto3's client for the environment's store, with the environment's keys and no others."""
    import boto3
    from botocore.config import Config

    endpoint = os.environ.get(ENDPOINT, "")
    if endpoint:
        refuse_plain_http(endpoint, ENDPOINT, CA_BUNDLE)
    if missing := [name for name in KEYS if not os.environ.get(name)]:
        raise UsageError(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
            why="keys come from the environment only, never from an argument, a notebook or a file",
            fix="attach the workbench's data connection, or export them in the shell that starts this",
        )
    if (bundle := os.environ.get(CA_BUNDLE)) and not os.path.isfile(bundle):
        raise UsageError(f"{CA_BUNDLE} is {bundle}, and there is no such file", fix="name the store's certificate")
    return boto3.client(
        "s3",
        endpoint_url=endpoint or None,
        aws_access_key_id=os.environ[KEYS[0]],
        aws_secret_access_key=os.environ[KEYS[1]],
        aws_session_token=os.environ.get("AWS_SESSION_TOKEN") or None,
        region_name=os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        verify=bundle or True,
        config=Config(
            request_checksum_calculation=os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"),
            response_checksum_validation=os.environ.get("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required"),
            retries={"max_attempts": 5, "mode": "standard"},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=connections(),
            # TLS protects what is sent, and the manifest's SHA-256 says whether it arrived: a third hash is only time
            s3={"payload_signing_enabled": False} | ({"addressing_style": "path"} if endpoint else {}),
        ),
    )


class S3Store:
    """The objects below a prefix of a bucket."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._s3 = _client()
        self._bucket = {"Bucket": address.name}

    def _object(self, name: str) -> dict[str, str]:
        return {**self._bucket, "Key": f"{self.address.inside}/{name}"}

    # --- bringing ---------------------------------------------------------------------------------------------------

    def entries(self) -> Mapping[str, Entry]:
        below = f"{self.address.inside}/"
        with self._told():
            return {
                item["Key"].removeprefix(below): Entry(item["Size"])
                for item in self._listed("list_objects_v2", "Contents", Prefix=below)
                if not item["Key"].endswith("/")  # consoles make such objects to show a folder
            }

    def read(self, name: str, start: int, stop: int) -> bytes:
        with self._told():
            found = self._s3.get_object(**self._object(name), Range=f"bytes={start}-{stop - 1}")
            block: bytes = found["Body"].read()
        return block

    # --- sending ----------------------------------------------------------------------------------------------------

    def has(self, name: str, file: File, there: Entry) -> bool:
        if there.size != file.size:
            return False
        with self._told():
            etag = _bare(self._s3.head_object(**self._object(name))["ETag"])
        length = _part_length(file.size)
        parts = [_md5(block) for block in file.blocks(length)]
        if file.size <= PART_BYTES:
            return etag == (parts or [_md5(b"")])[0].hexdigest()
        return etag == f"{_md5(b''.join(part.digest() for part in parts)).hexdigest()}-{len(parts)}"

    def withdraw(self) -> None:
        with self._told():
            self._s3.delete_object(**self._object(MANIFEST))

    def put(self, name: str, file: File, moved: Progress) -> None:
        with self._told():
            if file.size > PART_BYTES:
                self._put_parts(name, file, moved)
            else:
                self._s3.put_object(**self._object(name), Body=b"".join(file.blocks(PART_BYTES)))
                moved(file.size)

    def finish(self, manifest: bytes, gone: Collection[str]) -> None:
        with self._told():
            self._s3.put_object(**self._object(MANIFEST), Body=manifest)
            for name in gone:
                self._s3.delete_object(**self._object(name))

    def _put_parts(self, name: str, file: File, moved: Progress) -> None:
        """A file in parts, those left out that arrived the last time. The file is read, and hashed, in order."""
        upload, there = self._upload(name)
        gate = BoundedSemaphore(connections() + 2)  # parts in memory

        def send(number: int, body: bytes) -> dict[str, Any]:
            etag = there.get(number, "")
            if _bare(etag) != (_md5(body).hexdigest() if etag else None):
                etag = self._s3.upload_part(**upload, PartNumber=number, Body=body)["ETag"]
            moved(len(body))
            return {"PartNumber": number, "ETag": etag}

        def freed(_: Future[dict[str, Any]]) -> None:
            gate.release()

        sent: list[Future[dict[str, Any]]] = []
        with ThreadPoolExecutor(connections()) as pool:
            try:
                for number, body in enumerate(file.blocks(_part_length(file.size)), start=1):
                    gate.acquire()
                    sent.append(pool.submit(send, number, body))
                    sent[-1].add_done_callback(freed)
                    if failed := next((one for one in sent if one.done() and one.exception()), None):
                        failed.result()
                parts = [one.result() for one in sent]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        self._s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})

    def _upload(self, name: str) -> tuple[dict[str, str], dict[int, str]]:
        """The newest upload of this name that was cut off, with the ETag of each part that arrived; else a new one."""
        wanted = self._object(name)
        begun = [
            each
            for each in self._listed("list_multipart_uploads", "Uploads", Prefix=wanted["Key"])
            if each["Key"] == wanted["Key"]
        ]
        if not begun:
            return {**wanted, "UploadId": self._s3.create_multipart_upload(**wanted)["UploadId"]}, {}
        upload = {"Key": wanted["Key"], "UploadId": max(begun, key=lambda each: each["Initiated"])["UploadId"]}
        parts = self._listed("list_parts", "Parts", **upload)
        return {**self._bucket, **upload}, {part["PartNumber"]: part["ETag"] for part in parts}

    def _listed(self, operation: str, key: str, **wanted: Any) -> Iterator[dict[str, Any]]:
        for page in self._s3.get_paginator(operation).paginate(**self._bucket, **wanted):
            yield from page.get(key, [])

    # --- errors -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _told(self) -> Iterator[None]:
        """botocore's errors in labkit's words. Theirs may hold an address with its signature: they are not repeated."""
        from botocore import exceptions

        again = "run it again: it goes on where it was"
        try:
            yield
        except exceptions.SSLError:
            raise TransferError(
                f"{self.address}: the certificate of {ENDPOINT} is not one that this machine trusts",
                why="the store signed its own, or somebody stands between; labkit never leaves TLS unverified",
                fix=f"set {CA_BUNDLE} to a file with the certificate, from whoever runs the store",
            ) from None
        except (exceptions.EndpointConnectionError, exceptions.ConnectTimeoutError, exceptions.ProxyConnectionError):
            raise TransferError(
                f"{self.address}: nothing answers at the store's address",
                fix=f"check {ENDPOINT} and the network; {again}",
            ) from None
        except exceptions.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "no code"))
            raise TransferError(
                f"{self.address}: the store answered {code}", fix=FIXES.get(code, "look at the store's log")
            ) from None
        except (exceptions.HTTPClientError, exceptions.IncompleteReadError, exceptions.ResponseStreamingError) as error:
            raise CutOff(f"{self.address}: the connection broke ({type(error).__name__})", fix=again) from None
        except exceptions.BotoCoreError as error:
            raise TransferError(f"{self.address}: {type(error).__name__} in boto3", fix=f"check {ENDPOINT}") from None


def _part_length(size: int) -> int:
    return max(PART_BYTES, -(-size // MOST_PARTS))


def _md5(data: bytes) -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def _bare(etag: str) -> str:
    return etag.strip('"')
