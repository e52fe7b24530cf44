"""The readers that meet bytes from outside: each takes any bytes and returns, or raises an error of labkit's own."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from labkit.checkpoint import read_headers
from labkit.checkpoint.folder import read_config, weight_files
from labkit.data import read_rows
from labkit.errors import LabError
from labkit.files import MANIFEST, verify_manifest
from labkit.ledger import Ledger

Reader = Callable[[bytes], str]


def _reads(name: str, read: Callable[[Path], object], framed: Callable[[bytes], bytes] = bytes) -> Reader:
    """A reader of one file of that name; `read` gets its folder. What it returns is how the reading ended.

    framed: makes a file of the bytes, so that a search need not guess a length.
    """

    def on(data: bytes) -> str:
        with tempfile.TemporaryDirectory(prefix="labkit-fuzz-", dir="/dev/shm") as folder:
            (Path(folder) / name).write_bytes(framed(data))
            try:
                read(Path(folder))
            except LabError as error:
                return type(error).__name__
        return "read"

    return on


def _with_length(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(8)


READERS: dict[str, Reader] = {
    "safetensors": _reads("model.safetensors", read_headers),
    "header": _reads("model.safetensors", read_headers, _with_length),
    "manifest": _reads(MANIFEST, verify_manifest),
    "config.json": _reads("config.json", read_config),
    "index": _reads("model.safetensors.index.json", weight_files),
    "ledger": _reads("ledger.jsonl", lambda folder: Ledger(folder / "ledger.jsonl").headlines()),
    "data": _reads("rows.jsonl", lambda folder: read_rows(folder / "rows.jsonl")),
}
