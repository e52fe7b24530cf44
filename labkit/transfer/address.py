"""What a place is called: `s3://bucket/prefix`, `hub:owner/name` or a folder; and which names its files may have."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from labkit.errors import DataError, UsageError
from labkit.manifest import is_safe_name

S3, HUB = "s3://", "hub:"
BUCKET_VARIABLE = "AWS_S3_BUCKET"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]*")


@dataclass(frozen=True)
class Address:
    """A place. name, inside: a folder's path; a bucket and its prefix; a repository and its revision ("" for main)."""

    kind: Literal["folder", "s3", "hub"]
    name: str
    inside: str = ""

    def __str__(self) -> str:
        if self.kind == "s3":
            return f"{S3}{self.name}/{self.inside}".rstrip("/")
        if self.kind == "hub":
            return f"{HUB}{self.name}" + (f"@{self.inside}" if self.inside else "")
        return self.name

    @property
    def last(self) -> str:
        """The last part of it, which names what lies there."""
        return Path((self.inside if self.kind == "s3" else "") or self.name).name

    def below(self, name: str) -> Address:
        """A place inside of this one; a repository has none."""
        if self.kind == "hub":
            raise UsageError(f"{self} is one repository, and {name} would be a folder of its own in it")
        if self.kind == "s3":
            return Address("s3", self.name, f"{self.inside}/{name}".strip("/"))
        return Address("folder", str(Path(self.name) / name))


def is_address(text: str) -> bool:
    """Whether a text names a bucket or a repository by its scheme, and not a folder."""
    return text.startswith((S3, HUB))


def parse(text: str) -> Address:
    """The place that a text names; `s3:///prefix` is in the bucket of `AWS_S3_BUCKET`.

    Raises UsageError for a text that names none.
    """
    if text.startswith(S3):
        return _bucket(text)
    if text.startswith(HUB):
        repository, at, revision = text.removeprefix(HUB).partition("@")
        if not _REPOSITORY.fullmatch(repository) or (at and not _REVISION.fullmatch(revision)) or ".." in text:
            raise UsageError(f"{text} names no repository", fix="write hub:OWNER/NAME, or hub:OWNER/NAME@REVISION")
        return Address("hub", repository, revision)
    if "://" in text or not text.strip():
        raise UsageError(
            f"{text!r} is no place that labkit knows", fix="use s3://BUCKET/PREFIX, hub:OWNER/NAME or a folder"
        )
    return Address("folder", str(_folder(text)))


def _folder(text: str) -> Path:
    try:
        if b"\0" in os.fsencode(text):
            raise ValueError("it holds a zero byte")
        return Path(text).expanduser().absolute()
    except (RuntimeError, ValueError) as error:  # ~nobody; halves of characters, which no file system takes
        raise UsageError(f"{text!r} names no folder: {error}", fix="write the folder's whole path") from error


def _bucket(text: str) -> Address:
    bucket, _, prefix = text.removeprefix(S3).partition("/")
    bucket = bucket or os.environ.get(BUCKET_VARIABLE, "")
    if not bucket:
        raise UsageError(f"{text} names no bucket", fix=f"write s3://BUCKET/PREFIX, or set {BUCKET_VARIABLE}")
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{bucket!r} can't name a bucket", fix="use 3 to 63 lowercase letters, digits, '.' and '-'")
    prefix = prefix.strip("/")
    if not prefix:
        raise UsageError(
            f"{text} is a whole bucket",
            why="what is sent replaces what was sent to the same place before",
            fix=f"name a prefix: {S3}{bucket}/NAME",
        )
    refuse_unsafe_name(prefix, text)
    return Address("s3", bucket, prefix)


def refuse_unsafe_name(name: str, where: str) -> None:
    """Raises DataError for a file's name that would leave its folder, or can't be written on every system."""
    if not is_safe_name(name):
        raise DataError(
            f"{where} holds a file named {name[:200]!r}",
            why="it would be written outside of its folder, or can't be written on every system",
            fix="rename it there; nothing was written here",
        )


def refuse_plain_http(url: str, variable: str, certificate: str) -> None:
    """Raises UsageError for an endpoint that is no https:// (plain http on loopback is fine) or holds a password.

    certificate: the variable that names the certificate of an endpoint that signed its own.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{variable} names no endpoint ({error})", fix="write https://HOST[:PORT]") from error
    shown = f"{parts.scheme}://{parts.hostname or ''}"  # never the whole: it may hold a password
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"{variable} names no endpoint ({shown!r})", fix="write https://HOST[:PORT]")
    if parts.username or parts.password:
        raise UsageError(
            f"{variable} has a user or password in it ({shown})",
            why="addresses are printed and logged",
            fix="take it out, and set the key in the variables that are made for it",
        )
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        raise UsageError(
            f"{variable} is {shown}, without TLS",
            why="tokens and weights would cross the network in the clear, and could be changed on the way",
            fix=f"use https://; if the endpoint signed its own certificate, set {certificate} to a file with it",
        )


def is_loopback(host: str) -> bool:
    """Whether a host's name or address means this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
