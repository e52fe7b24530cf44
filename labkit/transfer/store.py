"""What any place can do: say what it holds, give a part of a file, and, if it can be sent to, take files."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from labkit.errors import TransferError, UsageError
from labkit.transfer.address import Address
from labkit.transfer.bundle import File

Progress = Callable[[int], None]  # is told how many bytes have just moved, or were there already


CONNECTIONS_VARIABLE, CONNECTIONS = "LABKIT_TRANSFER_CONNECTIONS", 8


def connections() -> int:
    """How many parts of a file move at a time: `LABKIT_TRANSFER_CONNECTIONS`, else 8."""
    asked = os.environ.get(CONNECTIONS_VARIABLE) or str(CONNECTIONS)
    if not asked.isdecimal() or not 1 <= int(asked) <= 64:
        raise UsageError(f"{CONNECTIONS_VARIABLE} is {asked!r}", fix="set it to a number from 1 to 64")
    return int(asked)


class CutOff(TransferError):
    """A connection that broke: worth another try."""


@dataclass(frozen=True)
class Entry:
    """A file there. size: in bytes. sha256, git_sha1: what the place itself says of its contents, "" for nothing."""

    size: int
    sha256: str = ""
    git_sha1: str = ""


class Source(Protocol):
    """A place to bring from. Names have `/`; errors are LabErrors that name the place and what to do."""

    address: Address

    def entries(self) -> Mapping[str, Entry]:
        """Everything that lies there, by name."""

    def read(self, name: str, start: int, stop: int) -> bytes:
        """The bytes of a file from `start` up to `stop`, or fewer; see `read_range`."""


def read_range(source: Source, name: str, start: int, stop: int) -> bytes:
    """The bytes of a file from `start` up to `stop`; raises CutOff if fewer came."""
    block = source.read(name, start, stop) if start < stop else b""
    if len(block) != stop - start:
        raise CutOff(f"{source.address}: {name} was cut off", fix="run it again: it goes on where it was")
    return block


class Target(Source, Protocol):
    """A place to send to."""

    def has(self, name: str, file: File, there: Entry) -> bool:
        """Whether what lies there under a name are the file's very bytes."""

    def withdraw(self) -> None:
        """From now on nothing there claims to be whole."""

    def put(self, name: str, file: File, moved: Progress) -> None:
        """A file as a whole, verified as it is read."""

    def finish(self, manifest: bytes, gone: Collection[str]) -> None:
        """Makes what was put whole by its manifest, and takes the files away that are `gone`."""
