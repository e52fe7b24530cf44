"""Places that files go to and come from: what each is called, and how it lists, fetches, compares and sends.

An address is `s3://BUCKET/PREFIX`, `hub:OWNER/NAME[@REVISION]` or a folder. Keys, endpoints and certificates come from
the environment only: README, "Publish and fetch". TLS is always verified.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from urllib.parse import urlsplit

from labkit.errors import DataError, TransferError, UsageError
from labkit.files import MANIFEST, file_sha256, is_safe_name

Progress = Callable[[int], None]  # gets the bytes that have just moved, or were there already; from any thread

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
FIXES = {  # by the code that an S3 store answers
    "NoSuchBucket": "make the bucket, or check its name",
    "AccessDenied": "ask for the right to list, read and write there",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY and this machine's clock",
    "403": "check the keys, and ask for the right to list, read and write there",
}
BLOCK_BYTES = 16 * 2**20
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([A-Za-z0-9][\w./-]*))?")


# --- addresses --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Address:
    """A place. name, inside: a folder's path; a bucket and its prefix; a repository and its revision ("" for main)."""

    kind: Literal["folder", "s3", "hub"]
    name: str
    inside: str = ""

    def __str__(self) -> str:
        if self.kind == "s3":
            return f"s3://{self.name}/{self.inside}"
        return f"hub:{self.name}{'@' * bool(self.inside)}{self.inside}" if self.kind == "hub" else self.name

    @property
    def last(self) -> str:
        """The last part of it, which names what lies there."""
        return Path((self.inside if self.kind == "s3" else "") or self.name).name

    def below(self, name: str) -> Address:
        """A place inside of this one; raises UsageError for a repository, which has none."""
        if self.kind == "hub":
            raise UsageError(f"{self} is one repository, and {name} would be a folder of its own in it")
        if self.kind == "s3":
            return Address("s3", self.name, f"{self.inside}/{name}".strip("/"))
        return Address("folder", str(Path(self.name) / name))


def is_address(text: str) -> bool:
    """Whether a text names a bucket or a repository by its scheme, and not a folder."""
    return text.startswith(("s3://", "hub:"))


def parse(text: str) -> Address:
    """The place that a text names; `s3:///PREFIX` is in the bucket of `AWS_S3_BUCKET`. Raises UsageError, DataError."""
    if text.startswith("s3://"):
        return _parse_s3(text)
    if text.startswith("hub:"):
        found = _REPOSITORY.fullmatch(text.removeprefix("hub:"))
        if not found or ".." in text:
            raise UsageError(f"{text} names no repository", fix="write hub:OWNER/NAME, or hub:OWNER/NAME@REVISION")
        return Address("hub", found.group(1), found.group(2) or "")
    if "://" in text or not text.strip():
        fix = "use s3://BUCKET/PREFIX, hub:OWNER/NAME or a folder"
        raise UsageError(f"{text!r} is no place that labkit knows", fix=fix)
    try:
        if b"\0" in os.fsencode(text):
            raise ValueError("it holds a zero byte")
        return Address("folder", str(Path(text).expanduser().absolute()))
    except (RuntimeError, ValueError) as error:  # ~nobody; halves of characters, which no file system takes
        raise UsageError(f"{text!r} names no folder: {error}", fix="write the folder's whole path") from error


def _parse_s3(text: str) -> Address:
    bucket, _, prefix = text.removeprefix("s3://").partition("/")
    bucket, prefix = bucket or os.environ.get("AWS_S3_BUCKET", ""), prefix.strip("/")
    if not _BUCKET.fullmatch(bucket):
        why = f"{bucket!r} is not 3 to 63 lowercase letters, digits, '.' and '-'"
        raise UsageError(f"{text} names no bucket", why, fix="write s3://BUCKET/PREFIX, or set AWS_S3_BUCKET")
    if not prefix:
        why = "an upload replaces what was uploaded to the same place before"
        raise UsageError(f"{text} is a whole bucket", why=why, fix=f"name a prefix: s3://{bucket}/NAME")
    refuse_unsafe_name(prefix, text)
    return Address("s3", bucket, prefix)


def refuse_unsafe_name(name: str, where: str) -> None:
    """Raises DataError for a file's name that would leave its folder, or can't be written on every system."""
    if not is_safe_name(name):
        why = "it would be written outside of its folder, or can't be written on every system"
        raise DataError(f"{where} holds a file named {name[:200]!r}", why, "rename it there; nothing was written here")


def refuse_plain_http(url: str, variable: str, certificate: str) -> None:
    """Raises UsageError for an endpoint that is no https:// (plain http on loopback is fine) or holds a password.

    variable, certificate: what names the endpoint, and the certificate of one that signed its own.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme not in ("http", "https") or not host:
            raise ValueError
    except ValueError:  # its words may hold a password
        raise UsageError(f"{variable} names no endpoint", fix="write https://HOST[:PORT]") from None
    shown = f"{parts.scheme}://{host}"
    if parts.username or parts.password:
        fix = "take it out, and set the key in the variables that are made for it"
        raise UsageError(f"{variable} has a user or password in it ({shown})", "addresses are printed and logged", fix)
    if parts.scheme == "http" and not _is_loopback(host):
        why = "tokens and weights would cross the network in the clear, and could be changed on the way"
        fix = f"use https://; if the endpoint signed its own certificate, set {certificate} to a file with it"
        raise UsageError(f"{variable} is {shown}, without TLS", why, fix)


def _is_loopback(host: str) -> bool:
    """Whether a host's name or address means this machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# --- files and folders ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """A file. size: in bytes. sha256, git_sha1: of its contents, "" if unknown. path: where it is on this machine."""

    size: int
    sha256: str = ""
    git_sha1: str = ""
    path: Path = Path()

    def fits(self, path: Path) -> bool:
        """Whether a file of this machine has this size and these contents."""
        if path.stat().st_size != self.size:
            return False
        if self.sha256:
            return file_sha256(path) == self.sha256
        digest = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest() == self.git_sha1


def files_below(folder: Path) -> dict[str, File]:
    """The files of a folder by name, with `/`; raises DataError for a link."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            fix = f"put the file itself there, or copy the folder with its files: cp -rL {folder} COPY"
            raise DataError(f"{path} is a link", why="what it points to may lie outside of the folder", fix=fix)
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = File(path.stat().st_size, path=path)
    return found


class Folder:
    """Files of this machine: those of the folder at an address, unless others are given."""

    def __init__(self, address: Address, files: Mapping[str, File] | None = None) -> None:
        if files is None and not Path(address.name).is_dir():
            raise TransferError(f"{address} is no folder", fix="check its name, and that the disk is there")
        self.address, self._files = address, files_below(Path(address.name)) if files is None else files

    def files(self) -> Mapping[str, File]:
        return self._files

    def fetch(self, name: str, to: Path, moved: Progress) -> None:
        with open(self._files[name].path, "rb") as source, open(to, "wb") as target:
            while block := source.read(BLOCK_BYTES):
                target.write(block)
                moved(len(block))

    def has(self, name: str, file: File, there: File) -> bool:
        return file.fits(there.path)


def _untrusted(address: Address, variable: str) -> TransferError:
    why = "it signed its own, or somebody stands between; labkit never leaves TLS unverified"
    fix = f"set {variable} to a file with the certificate, from whoever runs the endpoint"
    return TransferError(f"{address}: the endpoint's certificate is not one that this machine trusts", why, fix)


def _unreachable(address: Address, variable: str, error: Exception) -> TransferError:
    what = f"{address}: it can't be reached, or the connection broke ({type(error).__name__})"
    return TransferError(what, fix=f"check {variable} and the network, and run it again: it goes on where it was")


# --- S3 ---------------------------------------------------------------------------------------------------------------


class S3:
    """The objects below a prefix of a bucket; an upload stores the SHA-256 of each in its metadata.

    An upload that is killed leaves parts of one file at the store: give the bucket a lifecycle rule for those.
    """

    def __init__(self, address: Address) -> None:
        import boto3
        from botocore.config import Config

        endpoint, bundle = os.environ.get("AWS_S3_ENDPOINT", ""), os.environ.get("AWS_CA_BUNDLE", "")
        if endpoint:
            refuse_plain_http(endpoint, "AWS_S3_ENDPOINT", "AWS_CA_BUNDLE")
        if missing := [name for name in KEYS if not os.environ.get(name)]:
            why = "keys come from the environment only, never from an argument, a notebook or a file"
            fix = "attach the workbench's data connection, or export them in the shell that starts this"
            raise UsageError(f"not set in the environment: {', '.join(missing)}", why, fix)
        if bundle and not os.path.isfile(bundle):
            raise UsageError(f"AWS_CA_BUNDLE is {bundle}: there is no such file", fix="name the store's certificate")
        self.address = address
        self._client = boto3.client(  # which reads the keys and the certificate's name from the environment itself
            "s3",
            endpoint_url=endpoint or None,
            region_name=os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
            config=Config(
                # headers that some stores refuse; what arrived is judged by the manifest's SHA-256
                request_checksum_calculation=os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required"),
                response_checksum_validation=os.environ.get("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required"),
                ignore_configured_endpoint_urls=True,
                connect_timeout=10,
                s3={"addressing_style": "path"} if endpoint else {},
            ),
        )

    def _object(self, name: str) -> dict[str, str]:
        return {"Bucket": self.address.name, "Key": f"{self.address.inside}/{name}"}

    def files(self) -> dict[str, File]:
        below = f"{self.address.inside}/"
        with _s3_errors(self.address):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.address.name, Prefix=below)
            found = {item["Key"]: File(item["Size"]) for page in pages for item in page.get("Contents", [])}
        return {key.removeprefix(below): file for key, file in found.items() if not key.endswith("/")}  # no folders

    def fetch(self, name: str, to: Path, moved: Progress) -> None:
        with _s3_errors(self.address):
            self._client.download_file(**self._object(name), Filename=str(to), Callback=moved)

    def has(self, name: str, file: File, there: File) -> bool:
        if there.size != file.size:
            return False
        with _s3_errors(self.address):
            found = self._client.head_object(**self._object(name))["Metadata"]
        return {key.lower(): value for key, value in found.items()}.get("sha256") == file.sha256  # some say Sha256

    def send(self, files: Mapping[str, File], manifest: bytes, gone: Collection[str], moved: Progress) -> None:
        """Uploads files. The old manifest goes first and the new one comes last: meanwhile nothing looks whole."""
        with _s3_errors(self.address):
            self._client.delete_object(**self._object(MANIFEST))
            for name, file in files.items():
                metadata = {"Metadata": {"sha256": file.sha256}}
                self._client.upload_file(str(file.path), **self._object(name), ExtraArgs=metadata, Callback=moved)
            self._client.put_object(**self._object(MANIFEST), Body=manifest)
            for name in gone:
                self._client.delete_object(**self._object(name))


@contextmanager
def _s3_errors(address: Address) -> Iterator[None]:
    """botocore's errors in labkit's words. Theirs may hold an address with its signature: they are not repeated."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError, SSLError
    from s3transfer.exceptions import S3DownloadFailedError, S3ValidationError

    try:
        yield
    except SSLError:
        raise _untrusted(address, "AWS_CA_BUNDLE") from None
    except (ClientError, BotoCoreError, Boto3Error, S3DownloadFailedError, S3ValidationError) as error:
        refused = error.__context__ if isinstance(error, Boto3Error) else error  # upload_file wraps what was answered
        if isinstance(refused, ClientError):
            code = str(refused.response.get("Error", {}).get("Code", "no code"))
            fix = FIXES.get(code, "look at the store's log")
            raise TransferError(f"{address}: the store answered {code}", fix=fix) from None
        raise _unreachable(address, "AWS_S3_ENDPOINT", error) from None


# --- the hub ----------------------------------------------------------------------------------------------------------


class Hub:
    """The files of a model repository at a revision."""

    def __init__(self, address: Address) -> None:
        from huggingface_hub import HfApi, is_offline_mode, set_client_factory

        if is_offline_mode():
            raise UsageError(f"{address} can't be reached: HF_HUB_OFFLINE is set", fix="unset it, and try again")
        if endpoint := os.environ.get("HF_ENDPOINT", ""):
            refuse_plain_http(endpoint, "HF_ENDPOINT", "SSL_CERT_FILE")
        set_client_factory(_hub_client)
        self.address = address
        self._repository: dict[str, Any] = {"repo_id": address.name, "revision": address.inside or None}
        self._api = HfApi(endpoint=endpoint or None, token=os.environ.get("HF_TOKEN") or False)

    def files(self) -> dict[str, File]:
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        with _hub_errors(self.address):
            try:
                tree = [*self._api.list_repo_tree(**self._repository, recursive=True)]
            except GatedRepoError:  # it is there: one of the others, to its class
                raise
            except RepositoryNotFoundError:
                return {}
        found = [item for item in tree if isinstance(item, RepoFile)]
        return {f.path: File(f.size, f.lfs.sha256) if f.lfs else File(f.size, git_sha1=f.blob_id) for f in found}

    def fetch(self, name: str, to: Path, moved: Progress) -> None:
        """Downloads one file, which is counted when it is here; meanwhile huggingface_hub shows a bar of its own."""
        with _hub_errors(self.address), TemporaryDirectory(dir=to.parent) as folder:
            os.replace(self._api.hf_hub_download(filename=name, local_dir=folder, **self._repository), to)
        moved(to.stat().st_size)

    def has(self, name: str, file: File, there: File) -> bool:
        return there.sha256 == file.sha256 if there.sha256 else there.fits(file.path)

    def send(self, files: Mapping[str, File], manifest: bytes, gone: Collection[str], moved: Progress) -> None:
        """Uploads files; one commit makes them visible. A repository that is not there is created, and is private.

        Large files go first, one after another; the hub does not take again what it has, by its SHA-256.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [CommitOperationDelete(name) for name in gone]
        with _hub_errors(self.address):
            self._api.create_repo(self.address.name, private=True, exist_ok=True)
            for name, file in files.items():
                operations.append(CommitOperationAdd(name, str(file.path)))
                self._api.preupload_lfs_files(additions=operations[-1:], **self._repository)
                moved(file.size)
            operations.append(CommitOperationAdd(MANIFEST, manifest))
            self._api.create_commit(operations=operations, commit_message="Sent by labkit publish", **self._repository)


def _hub_client() -> Any:
    """The HTTP client of huggingface_hub, which here sends no request without TLS, wherever it is redirected to."""
    from huggingface_hub.utils._http import default_client_factory

    def require_tls(request: Any) -> None:
        if request.url.scheme != "https" and not _is_loopback(request.url.host):
            raise TransferError(f"the hub redirects to {request.url.host}, without TLS", fix="check HF_ENDPOINT")

    client = default_client_factory()
    client.event_hooks["request"].append(require_tls)
    return client


@contextmanager
def _hub_errors(address: Address) -> Iterator[None]:
    """The errors of huggingface_hub in labkit's words. Theirs may hold a signed address: they are not repeated."""
    from httpx import HTTPError
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    try:
        yield
    except GatedRepoError:
        raise TransferError(f"{address} is gated", fix="accept its licence on the hub, then set HF_TOKEN") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        fix = "set HF_TOKEN to a token that may" if status in (401, 403) else "check the name and the revision"
        raise TransferError(f"{address}: the hub answered {status}", fix=fix) from None
    except (HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of this machine, a full disk for instance: those of the hub have no number
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise _untrusted(address, "SSL_CERT_FILE") from None
        raise _unreachable(address, "HF_ENDPOINT", error) from None
