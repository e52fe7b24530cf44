"""The workspace: one folder that holds all that the labs make, and that can be thrown away.

    workspace/
      checkpoints/<variant>/           the profile's own model, as it is and quantized
      checkpoints/<model>--<variant>/  any other model
      results/                         sample-level records of evaluations
      runs/<UTC time>/, runs/latest    executed notebooks, logs, reports
      ledger.jsonl                     every measurement

A folder is made under another name and renamed into place, so that whatever stands under its final name is whole.
"""

from __future__ import annotations

import ctypes
import fcntl
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

from labkit.errors import UsageError
from labkit.ledger import Ledger
from labkit.manifest import write_manifest

STAGING = ".part-"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of linux/fcntl.h and linux/fs.h


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


@contextmanager
def publishing(final: Path, **facts: Any) -> Iterator[Path]:
    """Gives an empty folder to fill; it becomes `final`, with a manifest, only if the block ends without an error.

    An older `final` is replaced in one step: a kill at any moment leaves the old folder or the new one. (Where the file
    system can't exchange two names it may leave none.) What a killed save left behind (`.part-*`) is removed by the
    next one of the same name.
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
        put_in_place(stage, final, stage.with_name(stage.name + "-old"))
    finally:
        shutil.rmtree(stage, ignore_errors=True)


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
    def tokens(self) -> Path:
        """Calibration rows of local files, tokenized: a file a set (see tokenized.py)."""
        return self.root / "cache" / "tokens"

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.root / "ledger.jsonl")

    def require_writable(self) -> None:
        """Raises UsageError if this user may not write here, or could not make the folder."""
        there = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise UsageError(
                f"the workspace {self.root} can't be written to"
                + ("" if there == self.root else f" ({there} is {'not yours' if there.is_dir() else 'a file'})"),
                why="labs keep their checkpoints and results there",
                fix="name another one: --workspace FOLDER, or LABKIT_WORKSPACE",
            )

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
