"""Where files land before the folder has its name, so that a transfer that was cut off goes on where it was.

.fetch-NAME/
  asked.json     which contents were asked for; with others the stage is of no use
  files/         what is whole and verified; becomes the folder
  growing        the file that comes just now, in ranges that come in parallel and in any order
  ranges         its name, and where each range begins that is there
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from labkit.errors import CheckpointError, TransferError
from labkit.transfer.store import CutOff, Entry, Progress, Source, connections, read_range
from labkit.transfer.wanted import Digest, digest_of
from labkit.workspace import put_in_place, sync, write_atomically

RANGE_BYTES = 16 * 2**20
TRIES = 4  # of a range whose connection broke


def kept(root: Path) -> int:
    """Bytes that lie in a stage; of the file that grows, those that came (it is sparse)."""
    growing = root / "growing"
    whole = sum(path.stat().st_size for path in (root / "files").rglob("*") if path.is_file())
    return whole + (min(growing.stat().st_size, growing.stat().st_blocks * 512) if growing.exists() else 0)


class Stage:
    """The stage of one transfer; `files` is what becomes the folder."""

    def __init__(self, root: Path, asked: Mapping[str, Entry]) -> None:
        self.root, self.asked = root, asked
        self.files, self._growing, self._ranges = root / "files", root / "growing", root / "ranges"
        note, text = root / "asked.json", json.dumps({name: vars(entry) for name, entry in asked.items()})
        if root.exists() and (not note.exists() or note.read_text() != text):
            shutil.rmtree(root)
        self.files.mkdir(parents=True, exist_ok=True)
        write_atomically(note, text)

    def require_room(self) -> None:
        """Raises TransferError if the disk has no room for what is still to come."""
        need = sum(entry.size for entry in self.asked.values()) - kept(self.root)
        free = shutil.disk_usage(self.root).free
        if need > free:
            raise TransferError(
                f"{self.root.parent} has {free / 1e9:.1f} GB free, and {need / 1e9:.1f} GB are to come",
                fix="free some disk space, or bring it to another disk",
            )

    def fill(self, store: Source, name: str, moved: Progress) -> str:
        """Brings one file, or what of it is not here yet; returns its SHA-256.

        Raises CheckpointError if its contents are not those that were asked for.
        """
        entry, final = self.asked[name], self.files / name
        if final.exists() and (digest := digest_of(final, entry)).fits:
            moved(entry.size)
            return digest.sha256.hexdigest()
        digest = self._grow(store, name, entry, moved)
        if not digest.fits:
            self._ranges.unlink()
            raise CheckpointError(
                f"{store.address}: {name} has other contents than it should (its checksum differs)",
                why="it was damaged there or on the way, or changed while it was read",
                fix="run it again; if it stays so, send it again from where it was made",
            )
        final.parent.mkdir(parents=True, exist_ok=True)
        self._growing.replace(final)
        return digest.sha256.hexdigest()

    def _grow(self, store: Source, name: str, entry: Entry, moved: Progress) -> Digest:
        """All ranges of a file, hashed in order as they arrive."""
        there = self._noted(name)
        digest = Digest(entry)
        with (
            open(self._growing, "r+b" if there else "w+b") as file,
            open(self._ranges, "ab" if there else "wb", buffering=0) as notes,
        ):
            file.truncate(entry.size)
            if not there:
                notes.write(f"{json.dumps(name)}\n".encode())

            def fetch(start: int) -> tuple[int, int]:
                stop = min(start + RANGE_BYTES, entry.size)
                if start not in there:
                    _write(file.fileno(), _read(store, name, start, stop), start)
                    notes.write(f"{start}\n".encode())  # after its bytes: a kill in between only brings them again
                moved(stop - start)
                return start, stop

            with ThreadPoolExecutor(connections()) as pool:
                try:
                    for start, stop in pool.map(fetch, range(0, entry.size, RANGE_BYTES)):
                        digest.update(os.pread(file.fileno(), stop - start, start))
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            os.fsync(file.fileno())
        return digest

    def _noted(self, name: str) -> set[int]:
        """Where the ranges of this file begin that arrived the last time."""
        if not self._growing.exists() or not self._ranges.exists():
            return set()
        lines = self._ranges.read_text().split("\n")[:-1]  # a line without its end is not whole
        return {int(line) for line in lines[1:]} if lines[:1] == [json.dumps(name)] else set()

    def become(self, folder: Path) -> None:
        """`files` gets its name, in place of an older folder. Everything is on the disk before."""
        for path in [self.files, *self.files.rglob("*")]:
            if path.is_dir() or path.parent == self.files:
                sync(path)
        put_in_place(self.files, folder, self.root / "old")
        shutil.rmtree(self.root)


def _read(store: Source, name: str, start: int, stop: int) -> bytes:
    for tries_left in reversed(range(TRIES)):
        try:
            return read_range(store, name, start, stop)
        except CutOff:
            if not tries_left:
                raise
            time.sleep(0.5 * (TRIES - tries_left))
    raise AssertionError("unreachable")


def _write(handle: int, block: bytes, start: int) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(handle, view, start)
        view, start = view[written:], start + written
