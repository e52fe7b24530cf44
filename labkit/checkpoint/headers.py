"""What the safetensors files of a checkpoint say about themselves, read from their headers alone.

A file begins with 8 bytes (the header's length, little-endian) and a JSON header: name -> dtype, shape, data_offsets.
Source: github.com/huggingface/safetensors, "Format". A 15 GB checkpoint is described in milliseconds.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.checkpoint.files import weight_files
from labkit.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor. dtype is safetensors' name: BF16, I8, F8_E4M3, I32, ... begin: where it begins in `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: Path
    begin: int


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of a checkpoint by name; raises CheckpointError for a cut or damaged file, which it names."""
    tensors: dict[str, TensorInfo] = {}
    for path in weight_files(folder):
        entries, data = _header(path)
        for name, entry in entries.items():
            begin, end = entry["data_offsets"]
            tensors[name] = TensorInfo(name, entry["dtype"], tuple(entry["shape"]), end - begin, path, data + begin)
    return tensors


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """What the header says of each tensor, and where the data begin that its offsets count from."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"the header claims {length:,} bytes and the file has {size:,}")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if needed != size:
            raise ValueError(f"its header describes {needed:,} bytes and the file has {size:,}")
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {error}",
            why="it was cut or overwritten, and its weights are lost",
            fix="make or copy the checkpoint again",
        ) from error
    return header, 8 + length
