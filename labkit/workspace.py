"""The workspace: one folder that holds all that the labs make, and that can be thrown away.

    workspace/
      checkpoints/<variant>/           the profile's own model, as it is and quantized
      checkpoints/<model>--<variant>/  any other model
      results/                         sample-level records of evaluations
      runs/<UTC time>/, runs/latest    executed notebooks, logs, reports
      ledger.jsonl                     every measurement

A folder is made under another name and renamed into place, so that whatever stands under its final name is whole. Its
manifest holds the SHA-256 of each file: a flipped bit in a checkpoint is invisible to every loader, but not to that.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labkit.errors import CheckpointError, UsageError
from labkit.ledger import Ledger

MANIFEST = "labkit_manifest.json"
STAGING = ".part-"


def find_workspace(workspace: str = "", start: Path | None = None) -> Path:
    """The workspace folder: the argument, else `LABKIT_WORKSPACE`, else `workspace/` beside `notebooks/`.

    The notebooks are those of the checkout that this package is imported from, so that JupyterLab and papermill agree
    wherever they were started; only a labkit that is installed without its notebooks looks from the current folder
    upwards. `start` is looked at first: the command line gives the folder in which it also finds the labs to run.
    """
    named = workspace or os.environ.get("LABKIT_WORKSPACE", "")
    if named:
        return Path(named).expanduser().absolute()
    places = [start or Path(__file__).parent.parent, Path(__file__).parent.parent, Path.cwd()]
    for folder in [each for place in places for each in (place.absolute(), *place.absolute().parents)]:
        if (folder / "notebooks" / "00_start_here.ipynb").exists():
            return folder / "workspace"
    return places[-1].absolute() / "workspace"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, **facts: Any) -> None:
    """Writes the SHA-256 and size of every file in `folder`, with `facts` about how it was made."""
    files = {
        str(path.relative_to(folder)): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files, **facts}, indent=2, sort_keys=True) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a published folder."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {MANIFEST}", why="so nothing says whether it is whole", fix="make it again"
        )
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Reads every file and compares it with the manifest, which is returned; raises CheckpointError naming the file."""
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            found = "is missing"
        elif path.stat().st_size != expected["bytes"]:
            found = f"has {path.stat().st_size:,} bytes, not {expected['bytes']:,}"
        elif file_sha256(path) != expected["sha256"]:
            found = "has other contents than were written (SHA-256 differs)"
        else:
            continue
        raise CheckpointError(f"{path} {found}", why="the folder is damaged", fix=f"delete {folder} and make it again")
    return manifest


@contextmanager
def publishing(final: Path, **facts: Any) -> Iterator[Path]:
    """Gives an empty folder to fill; it becomes `final`, with a manifest, only if the block ends without an error.

    An older `final` is replaced. A kill at any moment leaves the old folder, or none, or the new one; never half.
    Folders that a killed save left behind (`.part-*`) are removed by the next save of the same name.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(f"{STAGING}{final.name}-*"):
        if not _alive(left):
            shutil.rmtree(left, ignore_errors=True)
    stage = final.parent / f"{STAGING}{final.name}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    stage.mkdir()
    try:
        yield stage
        write_manifest(stage, **facts)
        for path in [*stage.rglob("*"), stage]:
            sync(path)
        old = stage.with_name(stage.name + "-old")
        if final.exists():
            final.rename(old)
        stage.rename(final)
        sync(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _alive(stage: Path) -> bool:
    """Whether the process that made a staging folder still runs."""
    match = re.search(r"-(\d+)-[0-9a-f]{6}(-old)?$", stage.name)
    return match is not None and Path(f"/proc/{match.group(1)}").exists()


def sync(path: Path) -> None:
    """Returns when a file's contents, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, text: str) -> None:
    """Replaces a text file whole, or leaves the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{STAGING}{path.name}-{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        sync(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True)
class Workspace:
    """The folders of one workspace; made when first written to."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def passed(self) -> Path:
        """How each lab last passed: a file a lab."""
        return self.root / "passed"

    @property
    def models(self) -> Path:
        """Models that were brought from a bucket or the hub by their address, each contents once."""
        return self.root / "cache" / "models"

    @property
    def data(self) -> Path:
        """Folders of data files that were brought by their address."""
        return self.root / "cache" / "data"

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.root / "ledger.jsonl")

    def checkpoint(self, variant: str, model: str = "") -> Path:
        """Where a variant lives: of the profile's own model, or of another `model` by its short name."""
        for name in filter(None, [variant, model]):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise UsageError(f"{name!r} can't name a checkpoint", fix="use letters, digits, '.', '_' and '-'")
        return self.checkpoints / (f"{model}--{variant}" if model else variant)

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Lets one process at a time into the block of that name; one that ends, however it ends, lets go of it."""
        folder = self.root / "cache" / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / name, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def new_run(self) -> Path:
        """A new folder under `runs/`, named by the UTC time; `runs/latest` points to it."""
        self.runs.mkdir(parents=True, exist_ok=True)
        while True:
            run = self.runs / (datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3] + "Z")
            try:
                run.mkdir()
                break
            except FileExistsError:
                time.sleep(0.001)  # another run began in the same millisecond
        link = self.runs / f"{STAGING}latest-{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(run.name)
        link.replace(self.runs / "latest")
        return run
