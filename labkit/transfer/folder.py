"""Files of this machine as a place to bring from: a folder (a shared disk, a stick), or a bundle for a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from labkit.errors import DataError, TransferError
from labkit.transfer.address import Address
from labkit.transfer.bundle import Bundle
from labkit.transfer.store import Entry


class FolderSource:
    """Files below a folder. Links are refused: they may lead out of it."""

    def __init__(self, address: Address) -> None:
        self.address, self._root = address, Path(address.name)
        if not self._root.is_dir():
            raise TransferError(f"{self._root} is no folder", fix="check its name, and that the disk is there")

    def entries(self) -> Mapping[str, Entry]:
        found = {}
        for path in sorted(self._root.rglob("*")):
            if path.is_symlink():
                raise DataError(
                    f"{path} is a link", why="it may lead out of the folder", fix="put the file itself there"
                )
            if path.is_file():
                found[path.relative_to(self._root).as_posix()] = Entry(path.stat().st_size)
        return found

    def read(self, name: str, start: int, stop: int) -> bytes:
        return _range(self._root / name, start, stop)


class BundleSource:
    """The files of a bundle, by the contents that its manifest names."""

    def __init__(self, bundle: Bundle, address: Address) -> None:
        self.address, self._files = address, bundle.files

    def entries(self) -> Mapping[str, Entry]:
        return {name: Entry(file.size, file.sha256) for name, file in self._files.items()}

    def read(self, name: str, start: int, stop: int) -> bytes:
        return _range(self._files[name].path, start, stop)


def _range(path: Path, start: int, stop: int) -> bytes:
    with open(path, "rb") as file:
        return os.pread(file.fileno(), stop - start, start)
