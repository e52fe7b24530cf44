"""Checkpoints on their way: out to a folder, an S3 bucket or the hub, and back again, whole or not at all.

Whoever reads a bucket during an upload finds no manifest, and takes nothing without one; a commit of the hub is atomic;
a folder is filled under another name, `.fetch-NAME` beside it. What has arrived whole, by its checksum, does not move
again: a transfer that was cut off goes on file by file.

Read `places` first (what each is called, and can do), then this.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock

from labkit.errors import CheckpointError, DataError, TransferError, UsageError, first_line
from labkit.files import MANIFEST, file_sha256, parse_manifest, put_in_place, read_manifest, sync
from labkit.transfer.places import (
    S3,
    Address,
    File,
    Folder,
    Hub,
    Progress,
    files_below,
    is_address,
    parse,
    refuse_plain_http,
    refuse_unsafe_name,
)

Place = Folder | S3 | Hub
Keep = Callable[[str], bool]  # which files of a repository without a manifest are wanted, by name
MAKE_AGAIN = "make it again, or send it (again) from where it was made: labkit publish FOLDER TARGET"


@dataclass(frozen=True)
class Bundle:
    """What goes out: files by name, and what is known of how they were made. The manifest is written from both."""

    files: Mapping[str, File]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())

    @property
    def manifest(self) -> bytes:
        files = {name: {"sha256": file.sha256, "bytes": file.size} for name, file in self.files.items()}
        return (json.dumps({"files": files, **self.facts}, indent=2, sort_keys=True) + "\n").encode()

    def verify(self) -> None:
        """Reads every file; raises CheckpointError for the first whose contents are not those of its SHA-256."""
        for file in self.files.values():
            _require_contents(file, file.path, str(file.path))


@dataclass(frozen=True)
class Plan:
    """What an upload would do. send, there: bytes by name of files that go, and that are there already.

    gone: files of an earlier upload that the new manifest does not name. whole: nothing is left to do.
    """

    send: Mapping[str, int]
    there: Mapping[str, int]
    gone: tuple[str, ...]
    whole: bool

    @property
    def size(self) -> int:
        """Bytes to send."""
        return sum(self.send.values())


def bundle(folder: Path, extra: Mapping[str, Path] | None = None) -> Bundle:
    """A folder ready to go out, with `extra` files added, or put in place of the folder's own.

    By its manifest if it has one (sizes are compared now, contents when it goes out), else hashed now. Raises
    CheckpointError for a damaged folder, DataError for a damaged manifest, a link or a name that can't be written
    everywhere, UsageError if there is nothing.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder", fix="name the folder of a checkpoint")
    there = files_below(folder)
    if MANIFEST in there:
        found = _by_manifest(str(folder), (folder / MANIFEST).read_bytes(), there)
    else:  # in .cache lies what the hub's client leaves in a folder that it downloaded to
        found = Bundle({name: _hashed(file.path) for name, file in there.items() if ".cache" not in name.split("/")})
    files = {**found.files, **{name: _hashed(path) for name, path in (extra or {}).items()}}
    for name in files:
        refuse_unsafe_name(name, str(folder))
    if not files:
        raise UsageError(f"{folder} holds no file", fix="name the folder of a checkpoint")
    return Bundle(files, found.facts)


def _hashed(path: Path) -> File:
    return File(path.stat().st_size, file_sha256(path), path=path)


def _by_manifest(where: str, manifest: bytes, there: Mapping[str, File]) -> Bundle:
    """The files that a manifest names, which must be there; raises DataError, CheckpointError."""
    try:
        facts = parse_manifest(manifest)
    except ValueError as error:
        why = "it says which files belong together"
        raise DataError(f"{where}: {MANIFEST} is damaged ({error})", why, MAKE_AGAIN) from error
    files = {}
    for name, was in facts.pop("files").items():
        refuse_unsafe_name(name, where)
        if name not in there or there[name].size != was["bytes"]:
            found = f"has {there[name].size:,} bytes, not {was['bytes']:,}" if name in there else "is missing"
            why = "its manifest names it: the folder was damaged, or changed by hand"
            raise CheckpointError(f"{where}: {name} {found}", why, MAKE_AGAIN)
        files[name] = replace(there[name], sha256=was["sha256"])
    return Bundle(files, facts)


def _require_contents(file: File, path: Path, where: str) -> None:
    if not file.fits(path):
        why = "it was damaged there or on the way, or changed while it was read"
        fix = f"try again; if it stays so, {MAKE_AGAIN}"
        raise CheckpointError(f"{where} has other contents than were written (its checksum differs)", why, fix)


# --- out --------------------------------------------------------------------------------------------------------------


def plan(bundle: Bundle, target: Address) -> Plan:
    """Asks a place what it has; sends nothing. Raises UsageError for a folder that labkit did not make."""
    place = _place(target, to_fill=True)
    files = place.files()
    before = _read(place, MANIFEST) if MANIFEST in files else b""
    there = {n: f.size for n, f in bundle.files.items() if n in files and place.has(n, f, files[n])}
    whole = before == bundle.manifest and there.keys() == bundle.files.keys()
    if isinstance(place, Folder) and not whole:
        there = {}  # it is made anew
    try:
        named = set(parse_manifest(before)["files"])
    except ValueError:  # there is none, or it is damaged, and about to be replaced
        named = set()
    send = {name: file.size for name, file in bundle.files.items() if name not in there}
    return Plan(send, there, tuple(sorted((named & files.keys()) - bundle.files.keys())), whole)


def upload(bundle: Bundle, target: Address, moved: Progress = lambda _: None) -> Plan:
    """Uploads a bundle to a bucket, a repository or a folder; returns what was to do.

    moved: gets all bytes of the bundle, those that were there too. Raises TransferError if the place can't be reached
    or refuses, UsageError for a folder that labkit did not make, and CheckpointError, before anything changes there, if
    a file has not the contents that its manifest names.
    """
    bundle.verify()
    found, place = plan(bundle, target), _place(target, to_fill=True)
    moved(bundle.size - found.size)
    if found.whole:
        return found
    if isinstance(place, Folder):
        _fill(Folder(target, bundle.files), bundle, Path(target.name), moved, replaces=True)
    else:
        place.send({name: bundle.files[name] for name in found.send}, bundle.manifest, found.gone, moved)
    return found


def _place(address: Address, *, to_fill: bool = False) -> Place:
    """The place of an address. to_fill: it need not be there, and a folder must be one that labkit made."""
    if address.kind != "folder":
        return S3(address) if address.kind == "s3" else Hub(address)
    folder = Path(address.name)
    if to_fill and folder.exists() and not (folder / MANIFEST).is_file():
        raise _in_the_way(folder, "labkit did not make it")
    return Folder(address, {} if to_fill and not folder.exists() else None)


def _in_the_way(folder: Path, because: str) -> UsageError:
    fix = "delete it or name another folder, and run it again"
    return UsageError(f"{folder} is there already, and {because}", why="nothing of it was touched", fix=fix)


# --- back -------------------------------------------------------------------------------------------------------------


def download(
    source: Address, folder: Path, moved: Progress = lambda _: None, *, keep: Keep = lambda _: True
) -> Mapping[str, File]:
    """Downloads the files of a place to a folder, with a manifest; returns them.

    moved: gets all bytes, those that were here from an interrupted download too. A `folder` that holds these very files
    stays as it is. Raises UsageError if it holds anything else, CheckpointError if a file's contents are not those that
    the source names, TransferError if the source can't be reached or the disk is full.
    """
    place, wanted = _wanted(source, keep)
    _fill(place, wanted, folder, moved)
    return wanted.files


def download_to_cache(source: Address, cache: Path, *, keep: Keep = lambda _: True) -> Path:
    """The local folder of a place's files: downloaded below `cache`, once for each contents; errors as `download`."""
    place, wanted = _wanted(source, keep)
    contents = sorted((name, file.size, file.sha256, file.git_sha1) for name, file in wanted.files.items())
    folder = cache / hashlib.sha256(json.dumps(contents).encode()).hexdigest()[:16] / source.last
    if not folder.exists():  # it was verified when it came
        _fill(place, wanted, folder, lambda _: None)
    return folder


def listed(source: Address) -> Mapping[str, File]:
    """The files of a place, without downloading them; errors as `download`."""
    return _wanted(source, lambda _: True)[1].files


def peek(source: Address, name: str, *, keep: Keep = lambda _: True) -> bytes:
    """One small file of a place, verified, without downloading the rest; errors as `download`."""
    place, wanted = _wanted(source, keep)
    if name not in wanted.files:
        raise CheckpointError(f"{source} has no {name}", why="it is no checkpoint", fix="check its name")
    return _read(place, name, wanted.files[name])


def arrived(folder: Path) -> int:
    """How many bytes of a download to `folder` that was cut off are kept for the next time."""
    return Bundle(files_below(_stage(folder) / "files")).size


def _wanted(source: Address, keep: Keep) -> tuple[Place, Bundle]:
    """A place, and what to download from it: by the manifest there, else by what the hub itself says of each file.

    Raises CheckpointError if nothing says what the files must contain, DataError for a damaged manifest or a name that
    would leave the folder.
    """
    place = _place(source)
    there = place.files()
    if MANIFEST in there:
        found = _by_manifest(str(source), _read(place, MANIFEST), there)
    else:
        named = {name: file for name, file in there.items() if file.sha256 or file.git_sha1}
        found = Bundle({name: file for name, file in named.items() if keep(name) and not name.startswith(".")})
    if not found.files:
        cut_off = "nothing says which files belong to it and what they must contain, or an upload to it was cut off"
        raise CheckpointError(f"{source} has no {MANIFEST}", cut_off if there else "nothing lies there", MAKE_AGAIN)
    for name in found.files:
        refuse_unsafe_name(name, str(source))
    return place, found


def _read(place: Place, name: str, file: File | None = None) -> bytes:
    """A small file of a place; raises CheckpointError if its contents are not those of `file`."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        place.fetch(name, path, lambda _: None)
        if file:
            _require_contents(file, path, f"{place.address}: {name}")
        return path.read_bytes()


def _stage(folder: Path) -> Path:
    """Where a folder is filled: files/ has what was verified, arriving/ the file that comes now."""
    return folder.parent / f".fetch-{folder.name}"


def _fill(place: Place, wanted: Bundle, folder: Path, moved: Progress, *, replaces: bool = False) -> None:
    """Makes a folder of a place's files and a manifest, in one step, when all are here and verified.

    One transfer at a time: the next one waits. replaces: a folder with a manifest may be replaced.
    """
    stage = _stage(folder)
    files, arriving, lock = stage / "files", stage / "arriving" / "file", stage.with_name(f"{stage.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            try:
                if folder.exists() and not (replaces and (folder / MANIFEST).is_file()):
                    _require_same(folder, wanted, place)
                    moved(wanted.size)
                    return
                if not files_below(files).keys() <= {*wanted.files, MANIFEST}:
                    shutil.rmtree(stage)  # of other contents
                shutil.rmtree(arriving.parent, ignore_errors=True)
                arriving.parent.mkdir(parents=True)
                need, free = wanted.size - arrived(folder), shutil.disk_usage(stage).free
                if need > free:
                    room = f"{folder.parent} has {free / 1e9:.1f} GB free, and {need / 1e9:.1f} GB are to come"
                    raise TransferError(room, fix="free some disk space, or name a folder on another disk")
                for name, file in wanted.files.items():
                    path = files / name
                    if path.is_file() and file.fits(path):
                        moved(file.size)
                        continue
                    path.parent.mkdir(parents=True, exist_ok=True)
                    place.fetch(name, arriving, moved)
                    _require_contents(file, arriving, f"{place.address}: {name}")
                    arriving.replace(path)
                whole = {n: replace(f, sha256=f.sha256 or file_sha256(files / n)) for n, f in wanted.files.items()}
                (files / MANIFEST).write_bytes(replace(wanted, files=whole).manifest)
                for path in [files, *files.rglob("*")]:
                    sync(path)
                put_in_place(files, folder, stage / "old")
                shutil.rmtree(stage)
            finally:
                lock.unlink(missing_ok=True)  # whoever waits for it makes a new one
    except OSError as error:
        fix = "free some disk space or check the permissions, and run it again: it goes on where it was"
        raise TransferError(f"{folder}: {first_line(error)}", "what has arrived is kept beside it", fix) from error


def _require_same(folder: Path, wanted: Bundle, place: Place) -> None:
    """Raises UsageError unless a folder holds the wanted files, and no others."""
    named = read_manifest(folder)["files"] if (folder / MANIFEST).is_file() else {}
    there = files_below(folder)
    differ = [name for name, file in wanted.files.items() if name not in there or not file.fits(there[name].path)]
    if differ or named.keys() != wanted.files.keys():
        what = f"{differ[0]} differs" if named.keys() == wanted.files.keys() else "other files"
        raise _in_the_way(folder, f"is not what {place.address} has ({what})")
