"""What has nothing to be compared with but a limit: the import, the command line, the labs, the setup."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import ROOT, timed, timed_labs
from benchmarks.results import Bar, Result

LABS = ("00", "01", "02", "03")
DEADLINE_SECONDS = 1200.0
IMPORT_SECONDS, HELP_SECONDS, LABS_SECONDS, SETUP_SECONDS = 0.15, 0.3, 300.0, 300.0


def run_import(scratch: Path, runs: int | None) -> Result:
    """A new interpreter that imports labkit and ends."""
    command = [sys.executable, "-c", "import labkit"]
    found = [timed(command, scratch / "log", deadline_seconds=60, cwd=ROOT) for _ in range(runs or 5)]
    return Result("import", "`import labkit`", "", (Bar("wall_seconds", IMPORT_SECONDS),), tuple(found))


def run_help(scratch: Path, runs: int | None) -> Result:
    """The command line's first answer."""
    command = [str(Path(sys.executable).with_name("labkit")), "--help"]
    found = [timed(command, scratch / "log", deadline_seconds=60, cwd=ROOT) for _ in range(runs or 5)]
    return Result("help", "`labkit --help`", "", (Bar("wall_seconds", HELP_SECONDS),), tuple(found))


def run_labs(scratch: Path, runs: int | None) -> Result:
    """Labs 00 to 03 into a fresh workspace, by the command line; raises ProcessFailed unless all of them pass."""
    found = []
    for number in range(runs or 1):
        workspace, output = scratch / f"workspace-{number}", scratch / f"output-{number}"
        found.append(timed_labs(LABS, workspace, output, labs=len(LABS), deadline_seconds=DEADLINE_SECONDS))
    bars = (Bar("wall_seconds", LABS_SECONDS), Bar("peak_bytes"))
    return Result("labs", "Labs 00 to 03, environment ready", "", bars, tuple(found), checked="every lab passed")


def run_setup(scratch: Path, runs: int | None) -> Result:
    """`make setup` in a fresh clone of the committed tree, with pip's cache switched off, as on a new machine."""
    found = []
    for number in range(runs or 1):
        clone = scratch / f"clone-{number}"
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
        env = {"PIP_NO_CACHE_DIR": "1"}
        log = scratch / f"setup-{number}.log"
        found.append(timed(["make", "setup"], log, deadline_seconds=DEADLINE_SECONDS, env=env, cwd=clone))
        check = [str(clone / ".venv" / "bin" / "labkit"), "labs", "--json"]
        timed(check, scratch / f"check-{number}.log", deadline_seconds=60, cwd=clone)
        shutil.rmtree(clone)
    checked = "the clone's own `labkit labs` answers"
    return Result(
        "setup", "`make setup` in a fresh clone", "", (Bar("wall_seconds", 300.0),), tuple(found), (), checked
    )
