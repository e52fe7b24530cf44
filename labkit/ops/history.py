"""How each lab last passed in this workspace: for times to compare with, and to leave alone what has not changed.

A lab need not run again if everything that goes into it is the same: its cells, its parameters, labkit's own files, the
versions of the stack, the machine, the model's and the data's files, and what the labs that it needs made and measured;
and if what it made is still there as it was. One file a lab, so that two runs at once disturb nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from labkit.ledger import utc_now
from labkit.manifest import MANIFEST, file_sha256
from labkit.ops.notebooks import Lab
from labkit.ops.plan import other_model
from labkit.ops.prepare import Prepared
from labkit.ops.records import LabResult, Skip
from labkit.pace import cell_seconds
from labkit.workspace import write_atomically

# What a runner sets, and a folder's name: no input of a lab.
OWN = ("LABKIT_RUN", "LABKIT_WORKSPACE", "LABKIT_LAB", "LABKIT_JOBS", "LABKIT_QUIET")


@dataclass(frozen=True)
class Passed:
    """A lab that passed. key: of all that went into it. made: of what it left. run, output: the run that it was in.

    profile, cells: how long its cells took there, for `labkit.pace`, which reads them from this file.
    """

    key: str
    made: str
    run: str
    output: str
    ended: str
    seconds: float
    figure: str
    notebook: str | None
    skipped: tuple[Skip, ...]
    profile: str
    cells: dict[str, float]


class History:
    """What a workspace remembers of its labs, for one run."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared, self._folder = prepared, prepared.workspace.passed
        self._by_name = {lab.name: lab for lab in prepared.known}

    def last(self, lab: Lab) -> Passed | None:
        """How it last passed, whatever has changed since; None if it never did, or its record can't be read."""
        try:
            found = json.loads(self._path(lab).read_text(encoding="utf-8"))
            return Passed(**{**found, "skipped": tuple(Skip(**skip) for skip in found["skipped"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def key(self, lab: Lab, values: Mapping[str, Any]) -> str:
        """The digest of everything that goes into a lab that is run with these parameters."""
        from labkit.hardware import stack_versions, this_machine

        prepared = self._prepared
        facts = {
            "cells": _cells(lab.path),
            "values": dict(values),
            "environment": {n: v for n, v in sorted(os.environ.items()) if n.startswith("LABKIT_") and n not in OWN},
            "profile": prepared.profile.name,
            "labkit": _own_files(),
            "versions": stack_versions(),
            "machine": this_machine().label,
            "files": [_folder(prepared.inputs.model), _folder(prepared.inputs.data)],
            "needs": {name: self._left_by(self._by_name[name]) for name in lab.needs},
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()

    def unchanged(self, lab: Lab, key: str, output: Path) -> tuple[LabResult, str] | None:
        """The result that still holds and the run that it is from, its notebook brought into `output`; or None."""
        last = self.last(lab)
        if last is None or last.key != key or last.made != self._made(lab, last.run):
            return None
        notebook = None
        if last.notebook:
            source = Path(last.output) / last.notebook
            if not source.is_file():
                return None
            shutil.copyfile(source, output / last.notebook)
            notebook = last.notebook
        reason = f"unchanged since {last.ended[:16].replace('T', ' ')}"
        found = LabResult(lab.name, "passed", reason, skipped=last.skipped, notebook=notebook)
        found = replace(found, figure=last.figure, before_seconds=last.seconds, unchanged=True)
        return found, last.run

    def remember(self, lab: Lab, result: LabResult, key: str, run: str, output: Path) -> None:
        """Writes down that a lab has passed; `key` is that of its start."""
        passed = Passed(
            key=key,
            made=self._made(lab, run),
            run=run,
            output=str(output),
            ended=utc_now(),
            seconds=result.seconds,
            figure=result.figure,
            notebook=result.notebook,
            skipped=result.skipped,
            profile=self._prepared.profile.name,
            cells=cell_seconds(output / result.notebook) if result.notebook else {},
        )
        write_atomically(self._path(lab), json.dumps(asdict(passed), indent=1) + "\n")

    def _path(self, lab: Lab) -> Path:
        return self._folder / f"{lab.name}.json"

    def _made(self, lab: Lab, run: str) -> str:
        """The digest of what a lab left: its checkpoints' manifests, and how many ledger lines of that run."""
        lines = sum(line.lab == lab.name and line.run == run for line in self._prepared.workspace.ledger.read())
        return _digest([*self._manifests(lab), str(lines)])

    def _left_by(self, lab: Lab) -> list[str]:
        """What a lab left for those that need it: its checkpoints, and when it last wrote into the ledger."""
        times = [line.time for line in self._prepared.workspace.ledger.read() if line.lab == lab.name]
        return [*self._manifests(lab), max(times, default="")]

    def _manifests(self, lab: Lab) -> list[str]:
        other = other_model(self._prepared.profile, self._prepared.inputs.model)
        paths = [self._prepared.workspace.checkpoint(variant, other) / MANIFEST for variant in lab.makes]
        return [file_sha256(path) if path.is_file() else "" for path in paths]


def _cells(notebook: Path) -> list[Any]:
    """What of a notebook decides what it does: not its outputs."""
    raw = json.loads(notebook.read_text(encoding="utf-8"))
    cells = [[c["cell_type"], c["source"], c.get("metadata", {}).get("tags", [])] for c in raw["cells"]]
    return [cells, raw.get("metadata", {}).get("labkit", {})]


@cache
def _own_files() -> str:
    """The digest of labkit itself, the embedded model included."""
    root = Path(__file__).parents[1]
    return _digest(f"{path.relative_to(root)} {file_sha256(path)}" for path in _files(root) if path.suffix != ".pyc")


def _folder(place: str) -> str:
    """The files of a local folder by name, size and time; a name that is none (a hub's, an address) says it all."""
    root = Path(place)
    if not place or not root.is_dir():
        return place
    stats = [(path.relative_to(root), path.stat()) for path in _files(root)]
    return _digest(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)


def _files(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file())


def _digest(lines: Any) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
