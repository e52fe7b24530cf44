"""A folder comes in: the contents of each file verified, whole or not at all, and resumable.

Files land in a stage beside the final folder (`stage`). When all are there with the contents that the source names
(`wanted`), a manifest is written and they get the folder's name.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from labkit.errors import CheckpointError, TransferError, UsageError, first_line
from labkit.manifest import MANIFEST, read_manifest
from labkit.transfer.address import Address
from labkit.transfer.places import source_of
from labkit.transfer.stage import Stage, kept
from labkit.transfer.store import Entry, Progress, Source, read_range
from labkit.transfer.wanted import Digest, Keep, digest_of, wanted_files

STAGE, LOCK = ".fetch-", ".lock"


def bring(
    source: Address, folder: Path, moved: Progress = lambda _: None, *, keep: Keep = lambda _: True
) -> Mapping[str, Entry]:
    """Brings a folder here under the name `folder`; returns its files.

    moved: is told of all bytes, those that were here from an interrupted transfer too. keep: which files of a
    repository without a manifest are wanted. A `folder` that holds these very files already stays as it is. Raises
    UsageError if it holds anything else, CheckpointError if a file's contents are not those that the source names,
    TransferError if the source can't be reached or the disk is full; what has arrived is kept for the next time.
    """
    store = source_of(source)
    files, facts = wanted_files(store, keep)
    settle(store, files, facts, folder, moved)
    return files


def bring_to_cache(
    source: Address, cache: Path, moved: Progress = lambda _: None, *, keep: Keep = lambda _: True
) -> Path:
    """The local folder of a bucket's or a repository's files: brought below `cache`, once for each contents."""
    store = source_of(source)
    files, facts = wanted_files(store, keep)
    contents = json.dumps({name: vars(entry) for name, entry in files.items()}, sort_keys=True)
    folder = cache / hashlib.sha256(contents.encode()).hexdigest()[:16] / source.last
    if not folder.exists():  # it was verified when it came
        settle(store, files, facts, folder, moved)
    return folder


def arrived(folder: Path) -> int:
    """How many bytes of a transfer to `folder` that was cut off are kept for the next time."""
    return kept(_stage_of(folder))


def listed(source: Address, *, keep: Keep = lambda _: True) -> Mapping[str, Entry]:
    """The files of a source, without bringing them; errors as for `bring`."""
    return wanted_files(source_of(source), keep)[0]


def peek(source: Address, name: str, *, keep: Keep = lambda _: True) -> bytes:
    """One small file of a source, verified, without bringing the rest; errors as for `bring`."""
    store = source_of(source)
    files, _ = wanted_files(store, keep)
    if name not in files:
        raise CheckpointError(f"{source} has no {name}", why="it is no checkpoint", fix="check its name")
    digest, block = Digest(files[name]), read_range(store, name, 0, files[name].size)
    digest.update(block)
    if not digest.fits:
        raise CheckpointError(f"{source}: {name} has other contents than it should", fix="send it again")
    return block


def settle(
    store: Source,
    files: Mapping[str, Entry],
    facts: Mapping[str, Any],
    folder: Path,
    moved: Progress,
    *,
    replace: bool = False,
) -> None:
    """Files of a store become a folder with a manifest. replace: a folder that has a manifest may be replaced."""
    staged = _stage_of(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(staged.with_name(f"{staged.name}{LOCK}")):
            different = _difference(folder, files) if folder.exists() else "nothing"
            if not different:
                shutil.rmtree(staged, ignore_errors=True)
                moved(sum(entry.size for entry in files.values()))
                return
            if folder.exists() and not (replace and (folder / MANIFEST).is_file()):
                refuse_to_replace(folder, f", and is not what {store.address} has ({different})")
            stage = Stage(staged, files)
            stage.require_room()
            listed = {
                name: {"bytes": entry.size, "sha256": stage.fill(store, name, moved)} for name, entry in files.items()
            }
            manifest = json.dumps({"files": listed, **facts}, indent=2, sort_keys=True) + "\n"
            (stage.files / MANIFEST).write_text(manifest, encoding="utf-8")
            stage.become(folder)
    except OSError as error:
        raise TransferError(
            f"{folder}: {first_line(error)}",
            why="what has arrived is kept beside it",
            fix="free some disk space or check the permissions, and run it again: it goes on where it was",
        ) from error


def _stage_of(folder: Path) -> Path:
    return folder.parent / f"{STAGE}{folder.name}"


def refuse_to_replace(folder: Path, what: str = ", and labkit did not make it") -> NoReturn:
    """Raises UsageError: what is in a folder may be somebody's work."""
    raise UsageError(
        f"{folder} is there already{what}",
        why="nothing of it was touched",
        fix="delete it or name another folder, and run it again",
    )


def _difference(folder: Path, files: Mapping[str, Entry]) -> str:
    """In what a folder is not these files, in a few words; "" if it is."""
    if not (folder / MANIFEST).is_file() or read_manifest(folder)["files"].keys() != files.keys():
        return "other files"
    different = [
        name
        for name, entry in files.items()
        if not (folder / name).is_file() or not digest_of(folder / name, entry).fits
    ]
    more = f", and {len(different) - 1} more" if different[1:] else ""
    return f"{different[0]} differs{more}" if different else ""


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One transfer at a time to a folder; the next one waits."""
    while True:
        with open(lock, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                continue  # whoever held it took it away: it guards nothing any more
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return
