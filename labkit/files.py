"""Files and folders that are whole, or not there: made under another name, described by a manifest, renamed into place.

A manifest has the SHA-256 of each file of its folder: a flipped bit in a checkpoint is invisible to every loader, but
not to that.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labkit.errors import CheckpointError

STAGING = ".part-"
MANIFEST = "labkit_manifest.json"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h
_UNWRITABLE = re.compile(r"[\\:\x00-\x1f\x7f\ud800-\udfff]")  # the last are halves of characters, which UTF-8 has not


@contextmanager
def publishing(final: Path, **facts: Any) -> Iterator[Path]:
    """Gives an empty folder to fill; it becomes `final`, with a manifest, only if the block ends without an error.

    An older `final` is replaced in one step: a kill at any moment leaves the old folder or the new one. (Where the file
    system can't exchange two names it may leave none.) What a killed save left behind (`.part-*`) is removed by the
    next one of the same name.
    """
    stage = _staged(final)
    stage.mkdir()
    try:
        yield stage
        write_manifest(stage, **facts)
        for path in [*stage.rglob("*"), stage]:
            sync(path)
        put_in_place(stage, final, stage.with_name(stage.name + "-old"))
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _staged(final: Path) -> Path:
    """A name beside `final`, to make it under; what processes that were killed left under such names is removed."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(f"{STAGING}{final.name}-*"):
        maker = re.search(r"-(\d+)-[0-9a-f]{6}(-old)?$", left.name)
        if maker and not Path(f"/proc/{maker.group(1)}").exists():
            left.unlink(missing_ok=True) if left.is_file() else shutil.rmtree(left, ignore_errors=True)
    return final.parent / f"{STAGING}{final.name}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def put_in_place(new: Path, final: Path, aside: Path) -> None:
    """The folder `new` gets the name `final`, in one step where the system can; what had it is removed.

    aside: what the older folder is called for a moment where the system can't.
    """
    if not (final.exists() and _exchange(new, final)):
        if final.exists():
            final.rename(aside)
        new.rename(final)
    sync(final.parent)
    for old in (new, aside):
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps what two names stand for in one step; False where system or file system can't. Source: renameat2(2)."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


def sync(path: Path) -> None:
    """Returns when a file's contents, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str | bytes) -> None:
    """Replaces a file whole, or leaves the old one."""
    part = _staged(path)
    try:
        part.write_bytes(text.encode() if isinstance(text, str) else text)
        sync(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# --- manifests --------------------------------------------------------------------------------------------------------


def is_safe_name(name: str) -> bool:
    """Whether a file of that name (parts apart by `/`) stays below its folder and can be written on every system.

    Not so: nothing, absolute paths, `.` and `..`, backslashes, colons (drive letters), control characters, and names
    longer than file systems take.
    """
    if _UNWRITABLE.search(name) or len(name.encode()) > 1024:
        return False
    return all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in name.split("/"))


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, **facts: Any) -> None:
    """Writes the SHA-256 and size of every file in `folder`, with `facts` about how it was made."""
    files = {
        str(path.relative_to(folder)): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files, **facts}, indent=2, sort_keys=True) + "\n")


def parse_manifest(data: bytes) -> dict[str, Any]:
    """A manifest's contents; raises ValueError unless it lists files with their sizes and digests."""
    try:
        manifest = json.loads(data)
        listed = {name: (facts["bytes"], facts["sha256"]) for name, facts in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it does not list files ({type(error).__name__})") from error
    for name, (size, sha256) in listed.items():
        if type(size) is not int or size < 0 or not re.fullmatch(r"[0-9a-f]{64}", str(sha256)):
            raise ValueError(f"it gives {name[:200]!r} no size and SHA-256")
    return dict(manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published folder; raises CheckpointError if it is missing or damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {MANIFEST}", "so nothing says whether it is whole", "make it again")
    try:
        manifest = parse_manifest(path.read_bytes())
        if strange := [name for name in manifest["files"] if not is_safe_name(name)]:
            raise ValueError(f"{strange[0][:200]!r} is no file of the folder")
        return manifest
    except ValueError as error:
        why = "it is what says which files belong together"
        raise CheckpointError(f"{path} is damaged: {error}", why, f"delete {folder} and make it again") from error


def verify_manifest(folder: Path, *, quick: bool = False) -> dict[str, Any]:
    """Compares every file with the manifest, which is returned; raises CheckpointError naming one that differs.

    quick: reads only files that are not older than the manifest, so that it can stand before each use of a large
    checkpoint. A disk that loses bits by itself changes no time: only a full reading finds that.
    """
    manifest, written = read_manifest(folder), (folder / MANIFEST).stat().st_mtime_ns
    for name, listed in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            complaint = "is missing"
        elif path.stat().st_size != listed["bytes"]:
            complaint = f"has {path.stat().st_size:,} bytes, not {listed['bytes']:,}"
        elif (path.stat().st_mtime_ns >= written or not quick) and file_sha256(path) != listed["sha256"]:
            complaint = "has other contents than were written (SHA-256 differs)"
        else:
            continue
        raise CheckpointError(f"{path} {complaint}", "the folder is damaged", f"delete {folder} and make it again")
    return manifest
