"""All labs: `labkit run --jobs 2` against the `papermill` command on one notebook after another; and all labs again."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.measure import ROOT, timed, timed_labs
from benchmarks.results import Bar, Result, Run

COLD, UNCHANGED = "all-labs", "all-labs-unchanged"
DEADLINE_SECONDS = 3600.0
COLD_BARS = (Bar("wall_seconds", 0.6), Bar("peak_bytes"))
UNCHANGED_BARS = (Bar("wall_seconds", 0.02),)


def run(scratch: Path, pairs: int | None) -> list[Result]:
    """Each side once, in a workspace of its own; raises ProcessFailed unless all labs pass on both sides."""
    notebooks = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    cold, again, theirs = [], [], []
    for number in range(pairs or 1):
        folder = scratch / str(number)
        cold.append(_labkit(folder, len(notebooks)))
        again.append(_labkit(folder, len(notebooks), "--only-changed", unchanged=True))
        theirs.append(_papermill(folder / "papermill", notebooks))
    against = "the `papermill` command on each notebook in its order, in a new workspace"
    checked = "every lab passed on both sides"
    return [
        Result(COLD, "All labs, `--jobs 2`", against, COLD_BARS, tuple(cold), tuple(theirs), checked),
        Result(
            UNCHANGED,
            "All labs again, nothing changed, `--only-changed`",
            "the same",
            UNCHANGED_BARS,
            tuple(again),
            tuple(theirs),
            "no lab ran, and each stayed passed",
        ),
    ]


def _labkit(folder: Path, labs: int, *flags: str, unchanged: bool = False) -> Run:
    output = folder / ("again" if unchanged else "output")
    return timed_labs(
        ["--jobs", "2", *flags],
        folder / "workspace",
        output,
        labs=labs,
        deadline_seconds=DEADLINE_SECONDS,
        unchanged=unchanged,
    )


def _papermill(folder: Path, notebooks: list[Path]) -> Run:
    """Seconds of all commands together, and the largest peak; papermill's exit code says that a lab ended well."""
    runs = []
    for notebook in notebooks:
        command = [str(Path(sys.executable).with_name("papermill")), str(notebook), str(folder / notebook.name)]
        command += ["-p", "workspace", str(folder / "workspace")]
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"{notebook.stem}.log"
        runs.append(timed(command, log, deadline_seconds=DEADLINE_SECONDS, cwd=notebook.parent))
    return Run(sum(one.wall_seconds for one in runs), max(one.peak_bytes or 0 for one in runs))
