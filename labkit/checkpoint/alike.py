"""Whether two checkpoints hold the same tensors, however they are cut into files."""

from __future__ import annotations

from pathlib import Path

from labkit.checkpoint.headers import TensorInfo, read_headers

CHUNK_BYTES = 2**24


def different_tensors(one: Path, other: Path) -> list[str]:
    """Names of the tensors that only one of two checkpoints has, or that differ in dtype, shape or a single bit.

    Nothing larger than a chunk is in memory. Raises CheckpointError for a file that is no whole safetensors file.
    """
    ours, theirs = read_headers(one), read_headers(other)
    return sorted(
        n for n in ours.keys() | theirs.keys() if n not in ours or n not in theirs or _differ(ours[n], theirs[n])
    )


def _differ(one: TensorInfo, other: TensorInfo) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return True
    with open(one.file, "rb") as first, open(other.file, "rb") as second:
        first.seek(one.begin)
        second.seek(other.begin)
        left = one.bytes
        while left:
            chunk = min(left, CHUNK_BYTES)
            if first.read(chunk) != second.read(chunk):
                return True
            left -= chunk
    return False
