"""The import, the command line, the labs, the setup; and how the cost of a ledger and of a report grows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import ROOT, Bar, Growth, Point, Result, Run, ours, timed
from labkit.errors import ProcessFailed

BIN = Path(sys.executable).parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
FIRST_LABS = ("00", "01", "02", "03")
LABS_SECONDS, SETUP_SECONDS = 3600.0, 1200.0  # after which they are ended
IMPORT_BARS, HELP_BARS = (Bar("wall_seconds", 0.15),), (Bar("wall_seconds", 0.3),)
FIRST_BARS, SETUP_BARS = (Bar("wall_seconds", 300.0), Bar("peak_bytes")), (Bar("wall_seconds", 300.0),)
UNCHANGED_BARS = (Bar("wall_seconds", 0.02),)


def run_import(scratch: Path, runs: int | None) -> list[Result]:
    """A new interpreter that imports labkit and ends."""
    command = [sys.executable, "-c", "import labkit"]
    found = tuple(timed(command, scratch / "log", deadline_seconds=60) for _ in range(runs or 5))
    return [Result("import", "`import labkit`", "", IMPORT_BARS, found)]


def run_help(scratch: Path, runs: int | None) -> list[Result]:
    """The command line's first answer."""
    command = [str(BIN / "labkit"), "--help"]
    found = tuple(timed(command, scratch / "log", deadline_seconds=60) for _ in range(runs or 5))
    return [Result("help", "`labkit --help`", "", HELP_BARS, found)]


def run_first(scratch: Path, runs: int | None) -> list[Result]:
    """Labs 00 to 03 into a fresh workspace, by the command line."""
    found = tuple(labs(FIRST_LABS, scratch / str(number), len(FIRST_LABS)) for number in range(runs or 1))
    return [Result("labs", "Labs 00 to 03, environment ready", "", FIRST_BARS, found, checked="every lab passed")]


def run_unchanged(scratch: Path, runs: int | None) -> list[Result]:
    """All labs, and all once more, where nothing has changed; the other side is our own first run."""
    again, firsts = [], []
    for number in range(runs or 1):
        firsts.append(labs(["--jobs", "2"], scratch / str(number), len(NOTEBOOKS)))
        again.append(labs(["--only-changed"], scratch / str(number), len(NOTEBOOKS), unchanged=True))
    what, checked = "All labs again, nothing changed, `--only-changed`", "no lab ran, and each stayed passed"
    against = "the run before, of all labs in a new workspace, `--jobs 2`"
    return [Result("labs-unchanged", what, against, UNCHANGED_BARS, tuple(again), tuple(firsts), checked)]


def labs(
    arguments: Sequence[str], room: Path, count: int, *, unchanged: bool = False, deadline_seconds: float = LABS_SECONDS
) -> Run:
    """`labkit run` with these arguments, its workspace and output in `room`.

    Raises ProcessFailed unless so many labs passed, or stayed passed where `unchanged` is expected. It says which did
    not and why, for the report goes with the rest of a benchmark's folder.
    """
    output = room / ("again" if unchanged else "output")
    command = [sys.executable, "-m", "labkit.cli", "run", *arguments]
    command += ["--workspace", str(room / "workspace"), "--output", str(output)]
    what, done = f"labkit run {' '.join(arguments)} did not do what it was to", None
    try:
        done = timed(command, output.with_suffix(".log"), deadline_seconds=deadline_seconds, env={})
    except ProcessFailed as error:
        if not (output / "report.json").is_file():
            raise
        what = error.what
    found = json.loads((output / "report.json").read_text(encoding="utf-8"))["labs"]
    wrong = [
        f"{lab['name']} {lab['verdict']}{', unchanged' * lab['unchanged']} {lab['reason']}".rstrip()
        for lab in found
        if lab["verdict"] != "passed" or lab["unchanged"] != unchanged
    ]
    if done is None or wrong or len(found) != count:
        raise ProcessFailed(what, "; ".join(wrong) or f"{len(found)} labs ran", "run it by hand, and read its report")
    return done


def run_setup(scratch: Path, runs: int | None) -> list[Result]:
    """`make setup` in a fresh clone of the committed tree, with no cache of packages, as on a new machine."""
    found = []
    for number in range(runs or 1):
        clone = scratch / f"clone-{number}"
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
        env = {"PIP_NO_CACHE_DIR": "1", "UV_NO_CACHE": "1"}
        log = scratch / f"setup-{number}.log"
        found.append(timed(["make", "setup"], log, deadline_seconds=SETUP_SECONDS, env=env, cwd=clone))
        timed([str(clone / ".venv" / "bin" / "labkit"), "labs", "--json"], log, deadline_seconds=60, cwd=clone)
        shutil.rmtree(clone)
    checked = "the clone's own `labkit labs` answers"
    return [Result("setup", "`make setup` in a fresh clone", "", SETUP_BARS, tuple(found), checked=checked)]


def grow_ledger(scratch: Path) -> Growth:
    points = [Point(**ours("ledger", scratch, scratch / f"{n}.jsonl", n)[1]) for n in (1000, 10_000, 100_000)]
    return Growth("growth-ledger", "Read a ledger and choose its newest lines", "lines", tuple(points))


def grow_report(scratch: Path) -> Growth:
    points = [Point(**ours("report", scratch, scratch / f"report-{n}", n)[1]) for n in (10, 50, 200)]
    return Growth("growth-report", "Write a run's report", "labs", tuple(points))
