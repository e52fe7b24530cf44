"""The instrument: a command as a whole process tree, from its start to its end. The same for both sides of a pair."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.results import Run
from labkit import processes
from labkit.engine import telling_lines
from labkit.errors import ProcessFailed

ROOT = Path(__file__).parents[1]
SIDES = Path(__file__).parent / "sides"
LONGEST_LOOK_SECONDS = 0.05  # between two looks at a process; what a wall time is uncertain by

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def timed(
    command: Sequence[str],
    log: Path,
    *,
    deadline_seconds: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Run:
    """Runs a command to its end and says what it took; raises ProcessFailed, with its log's telling lines, if it fails.

    It is looked at every 2 ms at first, later every 50 ms; its memory, the largest sum of resident bytes over the
    process tree, as often as takes 2% of a core.
    """
    began = time.monotonic()
    with processes.start(command, log, {**_without_labkit(), **(env or {})}, cwd) as child:
        while child.poll() is None:
            elapsed = time.monotonic() - began
            if elapsed > deadline_seconds:
                raise _failed(command, log, f"did not end within {deadline_seconds:.0f} s")
            time.sleep(min(LONGEST_LOOK_SECONDS, 0.002 + elapsed / 50))
        finished = child.finished()
    if finished.returncode != 0:
        raise _failed(command, log, f"ended with exit code {finished.returncode}")
    return Run(round(finished.wall_seconds, 3), finished.peak_bytes)


def timed_labs(
    arguments: Sequence[str],
    workspace: Path,
    output: Path,
    *,
    labs: int,
    deadline_seconds: float,
    unchanged: bool = False,
) -> Run:
    """`labkit run` with these arguments. unchanged: that no lab runs, as each has passed before.

    Raises ProcessFailed unless so many labs passed. It says which did not and why, for the report goes with the rest
    of a benchmark's folder.
    """
    command = [sys.executable, "-m", "labkit.ops.cli", "run", *arguments]
    command += ["--workspace", str(workspace), "--output", str(output)]
    report = output / "report.json"
    failed: ProcessFailed | None = None
    try:
        done = timed(command, output.with_suffix(".log"), deadline_seconds=deadline_seconds, cwd=ROOT)
    except ProcessFailed as error:
        if not report.is_file():
            raise
        failed = error
    found = json.loads(report.read_text(encoding="utf-8"))["labs"]
    wrong = [
        f"{lab['name']} {lab['verdict']}{', unchanged' * lab['unchanged']} {lab['reason']}".rstrip()
        for lab in found
        if lab["verdict"] != "passed" or lab["unchanged"] != unchanged
    ]
    if failed or wrong or len(found) != labs:
        raise ProcessFailed(
            failed.what
            if failed
            else f"{processes.command_line(command)} reports {len(found)} labs, not all as wanted",
            why="; ".join(wrong) or "labs that did less, or more, than was asked for have no time",
            fix="run it by hand, and read its report",
        ) from failed
    return done


def interleaved(
    ours: Callable[[int], Run], theirs: Callable[[int], Run], pairs: int | None
) -> tuple[list[Run], list[Run]]:
    """A B A B ...: what else the machine does meets both sides alike. Each side is told the number of the pair.

    pairs: None for as many as the first one's slower side allows, see `times`.
    """
    found: tuple[list[Run], list[Run]] = ([ours(0)], [theirs(0)])
    for number in range(1, pairs or times(max(run.wall_seconds for side in found for run in side))):
        found[0].append(ours(number))
        found[1].append(theirs(number))
    return found


def times(seconds: float) -> int:
    """How often something is measured that takes so long once: five times, three, or once."""
    return next((often for limit, often in ((30.0, 5), (300.0, 3)) if seconds < limit), 1)


def _without_labkit() -> dict[str, str]:
    """A developer's settings reach no benchmark; set to nothing they count as not set.

    With PYTHONDONTWRITEBYTECODE labkit, which stands in a checkout, would be compiled anew each time; packages are not.
    """
    return {name: "" for name in os.environ if name.startswith("LABKIT_") or name == "PYTHONDONTWRITEBYTECODE"}


def _failed(command: Sequence[str], log: Path, how: str) -> ProcessFailed:
    lines = "\n".join(telling_lines(log)) or "(its log is empty)"
    return ProcessFailed(
        f"{processes.command_line(command)} {how}",
        why=lines,
        fix="mend it and measure again: a failed side has no time",
    )
