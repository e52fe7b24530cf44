"""What the safetensors files of a checkpoint say about themselves, read from their headers alone.

A file begins with 8 bytes (the header's length, little-endian) and a JSON header: name -> dtype, shape, data_offsets.
Source: github.com/huggingface/safetensors, "Format". A 15 GB checkpoint is described in milliseconds.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import CheckpointError
from labkit.modelfolder import weight_files

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
DTYPE_BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


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
        needed = 8 + length + _data_bytes(header)
        if needed != size:
            raise ValueError(f"its header describes {needed:,} bytes and the file has {size:,}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file: {error}",
            why="it was cut or overwritten, and its weights are lost",
            fix="make or copy the checkpoint again",
        ) from error
    return header, 8 + length


def _data_bytes(header: dict[str, Any]) -> int:
    """Bytes of all tensors; raises ValueError unless they lie one after another, each as large as its shape says."""
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, after = entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (begin, after, *entry["shape"])):
            raise ValueError(f"shape or offsets of {name} are no whole numbers")
        if begin != end or (after - begin) * 8 != math.prod(entry["shape"]) * DTYPE_BITS[entry["dtype"]]:
            raise ValueError(f"{name} is not where it should be, or not as large as its shape says")
        end = after
    return end
