"""The manifest of a folder: the SHA-256 and size of each of its files, and how it was made.

A flipped bit in a checkpoint is invisible to every loader, but not to this.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from labkit.errors import CheckpointError

MANIFEST = "labkit_manifest.json"
_UNWRITABLE = re.compile(r"[\\:\x00-\x1f\x7f\ud800-\udfff]")  # the last are halves of characters, which UTF-8 has not


def is_safe_name(name: str) -> bool:
    """Whether a file of that name (parts apart by `/`) stays below its folder and can be written on every system.

    Not so: nothing, absolute paths, `.` and `..`, backslashes, colons (drive letters), control characters, and names
    longer than file systems take.
    """
    return not (
        _UNWRITABLE.search(name)
        or any(part in ("", ".", "..") or len(part.encode()) > 255 for part in name.split("/"))
        or len(name.encode()) > 1024
    )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, **facts: Any) -> None:
    """Writes the SHA-256 and size of every file in `folder`, with `facts` about how it was made.

    Files are read side by side: a core digests about 1 GB/s, less than a GPU quantizes.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(file_sha256, paths)
        files = {
            str(path.relative_to(folder)): {"sha256": digest, "bytes": path.stat().st_size}
            for path, digest in zip(paths, digests, strict=True)
        }
    (folder / MANIFEST).write_text(json.dumps({"files": files, **facts}, indent=2, sort_keys=True) + "\n")


def parse_manifest(data: bytes) -> dict[str, Any]:
    """A manifest's contents; raises ValueError unless it lists files with their sizes and digests."""
    try:
        manifest = json.loads(data)
        files = manifest["files"]
        listed = {name: (facts["bytes"], facts["sha256"]) for name, facts in files.items()}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it does not list files ({type(error).__name__})") from error
    for name, (size, sha256) in listed.items():
        if type(size) is not int or size < 0 or not isinstance(sha256, str):
            raise ValueError(f"it gives {name!r} no size and digest")
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError(f"it gives {name!r} a digest that is no SHA-256")
    return dict(manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published folder."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {MANIFEST}", why="so nothing says whether it is whole", fix="make it again"
        )
    try:
        manifest = parse_manifest(path.read_bytes())
        if strange := [name for name in manifest["files"] if not is_safe_name(name)]:
            raise ValueError(f"{strange[0][:200]!r} is no file of the folder")
        return manifest
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged: {error}",
            why="it is what says which files belong together",
            fix=f"delete {folder} and make it again",
        ) from error


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Reads every file and compares it with the manifest, which is returned; raises CheckpointError naming the file."""
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        if complaint := _complaint(folder, name, expected, read=True):
            raise _damaged(folder, name, complaint)
    return manifest


def require_intact(folder: Path) -> None:
    """Raises CheckpointError, naming the file, if one was lost, cut or changed since the folder's manifest was written.

    Reads only what is not older than the manifest, so that it can stand before each use of a large checkpoint. A disk
    that loses bits by itself changes no time: `verify_manifest` finds that. A folder without a manifest is let through.
    """
    if not (folder / MANIFEST).is_file():
        return
    written = (folder / MANIFEST).stat().st_mtime_ns
    for name, expected in read_manifest(folder)["files"].items():
        path = folder / name
        touched = path.is_file() and path.stat().st_mtime_ns >= written
        if complaint := _complaint(folder, name, expected, read=touched):
            raise _damaged(folder, name, complaint)


def _complaint(folder: Path, name: str, expected: dict[str, Any], *, read: bool) -> str:
    """What is wrong with a file, "" if nothing is; its contents count only if they are to be read."""
    path = folder / name
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != expected["bytes"]:
        return f"has {path.stat().st_size:,} bytes, not {expected['bytes']:,}"
    if read and file_sha256(path) != expected["sha256"]:
        return "has other contents than were written (SHA-256 differs)"
    return ""


def _damaged(folder: Path, name: str, complaint: str) -> CheckpointError:
    return CheckpointError(
        f"{folder / name} {complaint}", why="the folder is damaged", fix=f"delete {folder} and make it again"
    )
