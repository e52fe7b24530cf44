"""A bundle goes out: what is there already is left alone, the manifest comes last.

Whoever reads a bucket meanwhile finds no manifest, and takes nothing without one. A folder is filled under another
name, and a commit of the hub is atomic. So a transfer that was cut off never looks whole, and the next one goes on
where it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import CheckpointError
from labkit.manifest import MANIFEST, verify_manifest
from labkit.transfer.address import Address
from labkit.transfer.bring import refuse_to_replace, settle
from labkit.transfer.bundle import Bundle
from labkit.transfer.folder import BundleSource
from labkit.transfer.places import target_of
from labkit.transfer.store import Progress, Target, read_range


@dataclass(frozen=True)
class Plan:
    """What a transfer would do. send, there: bytes by name of files that go, and that are there already.

    gone: files of what was sent before to the same place, and that the new manifest does not name. whole: nothing is
    left to do.
    """

    target: Address
    send: Mapping[str, int]
    there: Mapping[str, int]
    gone: tuple[str, ...]
    whole: bool

    @property
    def size(self) -> int:
        """Bytes to send."""
        return sum(self.send.values())


def plan(bundle: Bundle, target: Address) -> Plan:
    """Asks a place what it has; sends nothing."""
    if target.kind == "folder":
        return _plan_for_folder(bundle, target)
    return _plan(bundle, target_of(target))


def send(bundle: Bundle, target: Address, moved: Progress = lambda _: None) -> Plan:
    """Sends a bundle to a bucket, a repository or a folder; returns what was to do.

    moved: is told of all bytes of the bundle, those that were there too. Raises TransferError if the place can't be
    reached or refuses, CheckpointError if a file has not the contents that its manifest names, UsageError for a folder
    that is there and was not sent by labkit.
    """
    if target.kind == "folder":
        found, source = _plan_for_folder(bundle, target), BundleSource(bundle, target)
        settle(source, source.entries(), bundle.facts, Path(target.name), moved, replace=True)
        return found
    store = target_of(target)
    found = _plan(bundle, store)
    moved(sum(found.there.values()))
    if found.whole:
        return found
    store.withdraw()
    for name in found.send:
        store.put(name, bundle.files[name], moved)
    store.finish(bundle.manifest, found.gone)
    return found


def _plan(bundle: Bundle, store: Target) -> Plan:
    entries = store.entries()
    before = read_range(store, MANIFEST, 0, entries[MANIFEST].size) if MANIFEST in entries else b""
    there = [name for name, file in bundle.files.items() if name in entries and store.has(name, file, entries[name])]
    gone = tuple(sorted((_named(before) & entries.keys()) - bundle.files.keys()))
    whole = before == bundle.manifest and len(there) == len(bundle.files)
    return _sorted_out(bundle, store.address, there, gone, whole)


def _plan_for_folder(bundle: Bundle, target: Address) -> Plan:
    """A folder is made anew, or is whole already."""
    manifest = Path(target.name) / MANIFEST
    if Path(target.name).exists() and not manifest.is_file():
        refuse_to_replace(Path(target.name))
    before = manifest.read_bytes() if manifest.is_file() else b""
    whole = before == bundle.manifest and _is_sound(Path(target.name))
    gone = tuple(sorted(_named(before) - bundle.files.keys()))
    return _sorted_out(bundle, target, list(bundle.files) if whole else [], gone, whole)


def _is_sound(folder: Path) -> bool:
    try:
        verify_manifest(folder)
    except CheckpointError:
        return False
    return True


def _sorted_out(bundle: Bundle, target: Address, there: list[str], gone: tuple[str, ...], whole: bool) -> Plan:
    sizes = {name: file.size for name, file in bundle.files.items()}
    return Plan(
        target,
        {name: size for name, size in sizes.items() if name not in there},
        {name: sizes[name] for name in there},
        gone,
        whole,
    )


def _named(manifest: bytes) -> set[str]:
    """The files that a manifest at the target names; none if it is damaged, for it is about to be replaced."""
    try:
        return set(json.loads(manifest)["files"]) if manifest else set()
    except (ValueError, KeyError, TypeError):
        return set()
