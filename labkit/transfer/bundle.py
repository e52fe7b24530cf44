"""What goes out: the files of a folder, each with its SHA-256, and a manifest that names them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.errors import CheckpointError, DataError, UsageError
from labkit.manifest import MANIFEST, file_sha256, read_manifest
from labkit.transfer.address import refuse_unsafe_name

SKIPPED = ".cache"  # what the hub's client leaves in a folder that it downloaded to


@dataclass(frozen=True)
class File:
    """A local file. size: in bytes. sha256: what its bytes must have."""

    path: Path
    size: int
    sha256: str

    def blocks(self, length: int) -> Iterator[bytes]:
        """Its bytes, at most `length` at a time, hashed as they are given.

        Raises CheckpointError, after the last block, if they are not those of the SHA-256: what is sent was verified.
        """
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while block := file.read(length):
                digest.update(block)
                yield block
        self.require(digest.hexdigest())

    def require(self, sha256: str) -> None:
        """Raises CheckpointError if the bytes that were read have another SHA-256."""
        if sha256 != self.sha256:
            raise CheckpointError(
                f"{self.path} has other contents than were written (SHA-256 differs)",
                why="the folder is damaged, or changed just now",
                fix=f"make {self.path.parent} again",
            )


@dataclass(frozen=True)
class Bundle:
    """Files by name, and what is known of how they were made. The manifest is written from both."""

    files: Mapping[str, File]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())

    def verify(self) -> None:
        """Reads every file; raises CheckpointError naming the first whose contents are not those of its SHA-256."""
        for file in self.files.values():
            file.require(file_sha256(file.path))

    @property
    def manifest(self) -> bytes:
        files = {name: {"sha256": file.sha256, "bytes": file.size} for name, file in self.files.items()}
        return (json.dumps({"files": files, **self.facts}, indent=2, sort_keys=True) + "\n").encode()


def bundle(folder: Path, extra: Mapping[str, Path] | None = None) -> Bundle:
    """A folder ready to go out, with `extra` files added, or put in place of the folder's own.

    By its manifest if it has one (sizes are compared now, contents when they are read), else hashed now. Raises
    CheckpointError for a damaged folder, DataError for a link (it may lead out of the folder) or a name that can't be
    written everywhere, UsageError if there is nothing.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", fix="name the folder of a checkpoint")
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise DataError(
                f"{path} is a link",
                why="what it points to may lie outside of the folder",
                fix=f"copy the folder with its files: cp -rL {folder} COPY",
            )
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else {"files": _hashed(folder)}
    files = {name: _file(folder, name, facts) for name, facts in manifest["files"].items()}
    files |= {name: File(path, path.stat().st_size, file_sha256(path)) for name, path in (extra or {}).items()}
    for name in files:
        refuse_unsafe_name(name, str(folder))
    if not files:
        raise UsageError(f"{folder} holds no file", fix="name the folder of a checkpoint")
    return Bundle(files, {key: value for key, value in manifest.items() if key != "files"})


def _hashed(folder: Path) -> dict[str, dict[str, Any]]:
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        path.as_posix(): {"sha256": file_sha256(folder / path), "bytes": (folder / path).stat().st_size}
        for path in paths
        if SKIPPED not in path.parts
    }


def _file(folder: Path, name: str, facts: Mapping[str, Any]) -> File:
    path = folder / name
    found = path.stat().st_size if path.is_file() else None
    if found != facts["bytes"]:
        raise CheckpointError(
            f"{path} " + ("is missing" if found is None else f"has {found:,} bytes, not {facts['bytes']:,}"),
            why="the folder is damaged",
            fix=f"delete {folder} and make it again",
        )
    return File(path, facts["bytes"], facts["sha256"])
