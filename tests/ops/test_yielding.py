"""A lab that measures speed has the machine to itself: others stand beside it only where they give way at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from labkit.ops.cli import main
from labkit.ops.yielding import set_yielding
from tests.ops.probes import write_lab

NAMES = ("00_start_here", "01_other", "02_speed", "03_another")
STAMP = """import os, pathlib, subprocess, sys, time
pathlib.Path(workspace).mkdir(exist_ok=True)
began, seen = time.time(), []
first = pathlib.Path(workspace) / "00_start_here.times"  # a lab that measures goes on until this one has had its turn
while time.time() < began + 1.5 or ({measures} and not first.exists() and time.time() < began + 120):
    told = subprocess.run([sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"], capture_output=True)
    seen.append((time.time(), int(told.stdout)))
lines = [f"{{began}} {{time.time()}}", *(f"{{at}} {{policy}}" for at, policy in seen)]
(pathlib.Path(workspace) / "{name}.times").write_text("\\n".join(lines))"""

Span = tuple[float, float]


def labs_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, measuring: tuple[str, ...] = ("02_speed",), jobs: int = 2
) -> dict[str, tuple[Span, list[tuple[float, int]]]]:
    """When each of four labs began and ended, some of which measure, and the classes that its children had."""
    for name in [name for name in os.environ if name.startswith("LABKIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    for name in NAMES:
        write_lab(
            folder / "notebooks", name, STAMP.format(name=name, measures=name in measuring), alone=name in measuring
        )
    assert main(["run", "--jobs", str(jobs)]) == 0
    found = {}
    for name in NAMES:
        (began, ended), *seen = [
            line.split() for line in (folder / "workspace" / f"{name}.times").read_text().splitlines()
        ]
        found[name] = (float(began), float(ended)), [(float(at), int(policy)) for at, policy in seen]
    return found


def test_what_runs_beside_a_lab_that_measures_yields_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = labs_run(tmp_path, monkeypatch)
    (began, ended), measuring = found.pop("02_speed")
    assert {policy for _, policy in measuring} == {os.SCHED_OTHER}
    beside = [policy for _, seen in found.values() for at, policy in seen if began < at < ended]
    assert set(beside) == {os.SCHED_IDLE}
    assert min(start for (start, _), _ in found.values()) < ended, "nothing ran beside it"
    after = [policy for (start, _), seen in found.values() for _, policy in seen if start > ended]
    assert set(after) == {os.SCHED_OTHER}


def test_two_labs_that_measure_never_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = labs_run(tmp_path, monkeypatch, measuring=NAMES[1:3])
    first, second = (found[name][0] for name in NAMES[1:3])
    assert first[1] < second[0] or second[1] < first[0]


def test_one_at_a_time_labs_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = labs_run(tmp_path, monkeypatch, jobs=1)
    assert [name for name, _ in sorted(found.items(), key=lambda item: item[1][0])] == list(NAMES)
    assert {policy for _, seen in found.values() for _, policy in seen} == {os.SCHED_OTHER}


def test_a_whole_tree_yields_and_what_it_starts_later_too() -> None:
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    with subprocess.Popen([sys.executable, "-c", f"{child}; input(); {child}; time.sleep(60)"], stdin=-1) as parent:
        try:
            classes(parent.pid, wanted=2)
            set_yielding(parent.pid, True)
            assert set(classes(parent.pid, wanted=2)) == {os.SCHED_IDLE}
            assert parent.stdin is not None
            parent.stdin.write(b"\n")
            parent.stdin.flush()
            assert set(classes(parent.pid, wanted=3)) == {os.SCHED_IDLE}
        finally:
            for process in psutil.Process(parent.pid).children():
                process.kill()
            parent.kill()


def classes(pid: int, wanted: int) -> list[int]:
    """The scheduling classes of a process and those below it, once there are so many."""
    for _ in range(200):
        below = psutil.Process(pid).children(recursive=True)
        if len(below) + 1 >= wanted:
            break
        time.sleep(0.05)
    return [os.sched_getscheduler(each) for each in (pid, *(process.pid for process in below))]


def test_a_process_that_is_gone_is_no_error() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    set_yielding(gone.pid, True)
