"""The workspace: one folder that holds all that the labs make, and that can be thrown away.

workspace/
  checkpoints/<variant>/           the profile's own model, as it is and quantized
  checkpoints/<model>--<variant>/  any other model
  results/                         sample-level records of evaluations
  runs/<UTC time>/, runs/latest    executed notebooks, logs, reports
  ledger.jsonl                     every measurement
"""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from labkit.errors import UsageError
from labkit.files import STAGING
from labkit.ledger import Ledger
from labkit.profiles import TINY, Engine, Profile


def find_workspace(workspace: str = "", start: Path | None = None) -> Path:
    """The workspace folder: the argument, else `LABKIT_WORKSPACE`, else `workspace/` beside `notebooks/`.

    The notebooks are those above `start` (where the command line also finds the labs to run), else of the checkout that
    this package is imported from, so that JupyterLab and papermill agree wherever they were started, else those above
    the current folder.
    """
    if named := workspace or os.environ.get("LABKIT_WORKSPACE", ""):
        return Path(named).expanduser().absolute()
    for place in filter(None, [start, Path(__file__).parent, Path.cwd()]):
        for folder in (place.absolute(), *place.absolute().parents):
            if (folder / "notebooks" / "00_start_here.ipynb").exists():
                return folder / "workspace"
    return Path.cwd() / "workspace"


class Workspace:
    """The folders of one workspace; made when first written to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.checkpoints, self.results, self.runs = root / "checkpoints", root / "results", root / "runs"
        self.passed = root / "passed"  # how each lab last passed: a file a lab
        self.models, self.data = root / "cache" / "models", root / "cache" / "data"  # downloaded by their address
        self.ledger = Ledger(root / "ledger.jsonl")

    def require_writable(self) -> None:
        """Raises UsageError if this user may not write here, or could not make the folder."""
        there = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            why = f"labs keep their results there, and {there} is {'not yours' if there.is_dir() else 'a file'}"
            fix = "name another one: --workspace FOLDER, or LABKIT_WORKSPACE"
            raise UsageError(f"the workspace {self.root} can't be written to", why, fix)

    def checkpoint(self, variant: str, model: str = "") -> Path:
        """Where a variant lives: of the profile's own model, or of another `model` by its short name."""
        for name in filter(None, [variant, model]):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise UsageError(f"{name!r} can't name a checkpoint", fix="use letters, digits, '.', '_' and '-'")
        return self.checkpoints / (f"{model}--{variant}" if model else variant)

    def exclusive(self, name: str) -> AbstractContextManager[Any]:
        """Lets one process at a time into the block of that name; one that ends, however it ends, lets go of it."""
        folder = self.root / "cache" / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / name)

    def new_run(self) -> Path:
        """A new folder under `runs/`, named by the UTC time; `runs/latest` points to it."""
        run = self.runs / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
        run.mkdir(parents=True)
        link = self.runs / f"{STAGING}latest-{os.getpid()}"
        link.unlink(missing_ok=True)
        link.symlink_to(run.name)
        link.replace(self.runs / "latest")
        return run


@dataclass(frozen=True)
class Context:
    """What work is done with: one object in place of five arguments.

    logs: the folder for what libraries print. data: a local folder in place of hub data sets, "" for none. offline:
    whether the libraries are told that there is no hub. lab, run: who asks, for the ledger.
    """

    workspace: Workspace
    profile: Profile = TINY
    data: str = ""
    offline: bool = True
    logs: Path = field(default_factory=Path)
    lab: str = ""
    run: str = ""

    @property
    def engine(self) -> Engine:
        return self.profile.engine

    @property
    def seed(self) -> int:
        return self.profile.seed

    def log(self, what: str) -> Path:
        """The file that library output of one step goes to."""
        return self.logs / f"{what}.log"
