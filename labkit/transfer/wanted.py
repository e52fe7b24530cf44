"""Which files a source has, and what each must contain: by its manifest, else by what the hub itself says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from labkit.errors import CheckpointError, DataError
from labkit.manifest import MANIFEST, parse_manifest
from labkit.transfer.address import refuse_unsafe_name
from labkit.transfer.store import Entry, Source, read_range

Keep = Callable[[str], bool]
LARGEST_MANIFEST = 2**26  # bytes; one with 100,000 files has a fifth of that


class Digest:
    """A file's contents as they go by, and whether they are what an entry says."""

    def __init__(self, entry: Entry) -> None:
        self._entry, self._size = entry, 0
        self.sha256 = hashlib.sha256()
        self._git = hashlib.sha1(f"blob {entry.size}\0".encode(), usedforsecurity=False)

    def update(self, block: bytes) -> None:
        self._size += len(block)
        self.sha256.update(block)
        if not self._entry.sha256:
            self._git.update(block)

    @property
    def fits(self) -> bool:
        if self._size != self._entry.size:
            return False
        if self._entry.sha256:
            return self.sha256.hexdigest() == self._entry.sha256
        return self._git.hexdigest() == self._entry.git_sha1


def wanted_files(store: Source, keep: Keep) -> tuple[Mapping[str, Entry], Mapping[str, Any]]:
    """The files to bring, and what the source's manifest says of how they were made.

    keep: which files of a repository without a manifest are wanted. Raises CheckpointError if nothing says what the
    files must contain, DataError for a damaged manifest or a name that would leave the folder.
    """
    entries = store.entries()
    if MANIFEST in entries:
        return _by_manifest(store, entries)
    known = {name: entry for name, entry in entries.items() if entry.sha256 or entry.git_sha1}
    found = {name: entry for name, entry in known.items() if keep(name) and not name.startswith(".")}
    if not found:
        raise CheckpointError(
            f"{store.address} has no {MANIFEST}",
            why="nothing says which files belong to it and what they must contain, or a transfer to it was cut off"
            if entries
            else "nothing lies there",
            fix="send it (again) from where it was made: labkit publish FOLDER TARGET",
        )
    for name in found:
        refuse_unsafe_name(name, str(store.address))
    return found, {}


def _by_manifest(store: Source, entries: Mapping[str, Entry]) -> tuple[dict[str, Entry], dict[str, Any]]:
    where = f"{store.address}: {MANIFEST}"
    size = entries[MANIFEST].size
    if size > LARGEST_MANIFEST:
        raise DataError(f"{where} has {size:,} bytes", why="that is no list of files", fix="send it again")
    try:
        manifest = parse_manifest(read_range(store, MANIFEST, 0, size))
    except ValueError as error:
        raise DataError(
            f"{where} is damaged ({error})",
            why="it is what says which files belong together",
            fix="send it again: labkit publish FOLDER TARGET",
        ) from error
    found = {name: Entry(facts["bytes"], facts["sha256"]) for name, facts in manifest["files"].items()}
    for name, entry in found.items():
        refuse_unsafe_name(name, str(store.address))
        if name not in entries or entries[name].size != entry.size:
            there = f"has {entries[name].size:,} bytes, not {entry.size:,}" if name in entries else "is missing"
            raise CheckpointError(
                f"{store.address}: {name} {there}",
                why="its manifest names it: something was changed there by hand",
                fix="send it again: labkit publish FOLDER TARGET",
            )
    return found, {key: value for key, value in manifest.items() if key != "files"}


def digest_of(path: Path, entry: Entry) -> Digest:
    """The digest of a local file, to be held against an entry."""
    digest = Digest(entry)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest
