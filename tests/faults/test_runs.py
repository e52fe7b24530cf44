"""`labkit run` and labs that misbehave or are killed: the right verdict, nothing left, and the next run works."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import pytest

from labkit.files import verify_manifest
from labkit.ledger import Ledger
from tests.conftest import LABKIT, ROOT
from tests.faults.count import Fault
from tests.full_disk import run_with_room
from tests.ops.probes import PUBLISH, record, write_lab

DAEMON = 'import subprocess\nsubprocess.Popen(["sh", "-c", "setsid sleep 600 & exit 0"]).wait()'
WORK = "import time\ntime.sleep(1)\nprint('done')"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
SIGNALS = tuple(CODES)
END_SECONDS = 60
COURSES = 3  # at a time, where many runs are killed


def run(course: Path, fault: Fault, *words: str) -> subprocess.CompletedProcess[str]:
    command = [*LABKIT, "run", *words]
    return subprocess.run(command, cwd=course, env=fault.environment(), capture_output=True, text=True, timeout=600)


def latest(course: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((course / "workspace" / "runs" / "latest" / "report.json").read_text())
    return report


MISBEHAVING = {  # a lab's last cell, its verdict and the reason
    "00_is_killed": ("import os; os.kill(os.getpid(), 9)", "dead-kernel", "its kernel died"),
    "01_crashes": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "dead-kernel", "its kernel died"),
    "02_exits": ("import sys; sys.exit(0)", "failed", "the end mark is missing"),
    "03_asks": ("name = input('Your name? ')", "failed", "StdinNotImplementedError"),
    "04_floods": ("while True:\n    print('x' * 1000)", "failed", "MB of output"),
    "05_is_well": ("after = 1", "passed", ""),
}


def test_a_lab_that_misbehaves_fails_with_the_reason_and_leaves_nothing(tmp_path: Path, fault: Fault) -> None:
    for name, (cell, _, _) in MISBEHAVING.items():
        write_lab(tmp_path / "notebooks", name, DAEMON, cell)
    write_lab(tmp_path / "notebooks", "00_start_here")
    fault.injected(len(MISBEHAVING) - 1)
    assert run(tmp_path, fault, *MISBEHAVING, "--jobs", "2", "--timeout", "240").returncode == 1
    for lab in latest(tmp_path)["labs"]:
        _, verdict, reason = MISBEHAVING[lab["name"]]
        assert (lab["verdict"], reason in lab["reason"]) == (verdict, True), lab
    fault.nothing_left()
    size = sum(path.stat().st_size for path in (tmp_path / "workspace").rglob("*") if path.is_file())
    assert size < 500_000_000


@pytest.mark.long
def test_a_notebook_whose_cells_each_stay_under_the_limit_but_not_together_is_stopped(
    tmp_path: Path, fault: Fault
) -> None:
    write_lab(tmp_path / "notebooks", "00_start_here", DAEMON, *["import time\ntime.sleep(3)"] * 20)
    fault.injected()
    assert run(tmp_path, fault, "--timeout", "15").returncode == 1
    (lab,) = latest(tmp_path)["labs"]
    assert lab["verdict"] == "timeout"
    fault.nothing_left()


def test_what_is_misspelt_or_mistyped_stops_a_run_before_it_begins(tmp_path: Path, fault: Fault) -> None:
    write_lab(tmp_path / "notebooks", "00_start_here")
    for words, says in {
        "-p limt 5": "limt",
        "-p limit five": "a whole number",
        "-p limit 1.5": "a whole number",
        "--profile tinny": "tinny",
        "07": "07",
        "--jobs 0": "jobs",
        "--timeout -1": "timeout",
    }.items():
        fault.injected()
        done = run(tmp_path, fault, *words.split())
        assert (done.returncode, says in done.stderr, "Traceback" in done.stderr) == (2, True, False), done.stderr
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize("linked", [False, True])
def test_two_runs_at_once_in_one_workspace_in_an_odd_place_lose_nothing(
    tmp_path: Path, fault: Fault, linked: bool
) -> None:
    write_lab(tmp_path / "notebooks", "00_start_here", PUBLISH, record("int8-rtn", 0.9))
    workspace = tmp_path / "with spaces and ünïcödé 模型"
    if linked:
        (tmp_path / "elsewhere").mkdir()
        workspace.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    fault.injected(2)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(run, tmp_path, fault, "--workspace", str(workspace)) for _ in range(2)]
    assert [done.result().returncode for done in both] == [0, 0]
    verify_manifest(workspace / "checkpoints" / "int8-rtn")
    assert os.listdir(workspace / "checkpoints") == ["int8-rtn"]
    assert len(Ledger(workspace / "ledger.jsonl").read()) == 2
    reports = [json.loads(path.read_text()) for path in workspace.glob("runs/*Z/report.json")]
    assert [(report["complete"], report["labs"][0]["verdict"]) for report in reports] == [(True, "passed")] * 2
    fault.nothing_left()


def test_a_workspace_that_is_read_only_is_refused_before_anything_runs(tmp_path: Path, fault: Fault) -> None:
    """Root may write anywhere but on a file system that is read-only."""
    write_lab(tmp_path / "notebooks", "00_start_here")
    (tmp_path / "workspace").mkdir()
    words = [*LABKIT, "run"]
    if os.geteuid() == 0:
        mount = 'mount --bind workspace workspace && mount -o remount,ro,bind workspace && exec "$@"'
        words = ["unshare", "--mount", "sh", "-c", mount, "sh", *words]
        if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
            pytest.skip("this container may not mount anything")
    else:
        (tmp_path / "workspace").chmod(0o500)
    fault.injected()
    done = subprocess.run(words, cwd=tmp_path, env=fault.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"the workspace {tmp_path / 'workspace'} can't be written to" in done.stderr
    assert "--workspace FOLDER" in done.stderr


def test_a_disk_without_room_for_the_report_is_told_and_the_last_one_stays(tmp_path: Path, fault: Fault) -> None:
    write_lab(tmp_path / "notebooks", "00_start_here")
    assert run(tmp_path, fault, "--output", "out").returncode == 0
    fault.injected()
    with fault.keeps(tmp_path / "out" / "report.html"):
        done = run_with_room([*LABKIT, "run", "--output", "out"], 1000, env=fault.environment(), cwd=tmp_path)
    assert done.returncode == 1
    assert "the report could not be written" in done.stdout
    json.loads((tmp_path / "out" / "report.json").read_text())  # small enough: the new one, or the last one
    fault.nothing_left()


# --- killed at random moments -----------------------------------------------------------------------------------------


def killed(course: Path, fault: Fault, seconds: float, number: int, *words: str) -> int:
    """Starts a run, sends it a signal some seconds later, and returns its exit code when all of it has ended."""
    command = [*LABKIT, "run", *words]
    with subprocess.Popen(
        command, cwd=course, env=fault.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        time.sleep(seconds)
        fault.kill(process.pid, number)
        code = process.wait(END_SECONDS)
    fault.nothing_left()
    return code


def runs_of(course: Path) -> list[Path]:
    return sorted(path for path in (course / "workspace" / "runs").glob("*") if not path.is_symlink())


def judged_truly(folder: Path) -> None:
    """A run's report may miss, where the run was killed before it had one; it never claims what did not happen."""
    if not (folder / "report.json").exists():
        return
    told = json.loads((folder / "report.json").read_text())
    for lab in [lab for lab in told["labs"] if lab["verdict"] == "passed"]:
        cells = nbformat.read(folder / lab["notebook"], as_version=4).cells
        assert all(cell.execution_count for cell in cells if cell.cell_type == "code")
    assert not told["complete"] or {lab["verdict"] for lab in told["labs"]} == {"passed"}


def kill_runs(course: Path, fault: Fault, kills: range) -> None:
    """Kills runs of one course at random moments. All that must hold holds after each, and a whole run passes then."""
    course.mkdir()
    write_lab(course / "notebooks", "00_start_here", DAEMON, WORK)
    write_lab(course / "notebooks", "01_after", WORK, needs=["00_start_here"])
    began = time.monotonic()
    assert run(course, fault).returncode == 0
    longest, chance = time.monotonic() - began, random.Random(kills.start)
    for number in kills:
        how = SIGNALS[number % len(SIGNALS)]
        with fault.keeps(*runs_of(course), course / "notebooks"):
            code = killed(course, fault, chance.uniform(0, longest), how)
        assert code in {CODES[how], 0, -how}, "before it listens, a signal ends it as it ends any program"
        judged_truly(runs_of(course)[-1])
    assert run(course, fault).returncode == 0
    assert latest(course)["complete"]


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(1500)])])
def test_a_run_that_is_killed_at_any_moment_leaves_nothing_and_tells_no_lie(
    tmp_path: Path, fault: Fault, kills: int
) -> None:
    """Courses side by side, for a run mostly waits; the processes of each are known by a mark of its own."""
    courses = min(COURSES, kills // 3)
    parts = [range(kills * part // courses, kills * (part + 1) // courses) for part in range(courses)]
    with ThreadPoolExecutor(courses) as pool:
        done = [pool.submit(kill_runs, tmp_path / str(part.start), fault.beside(), part) for part in parts]
    for one in done:
        one.result()


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_real_labs_that_are_killed_leave_nothing_and_run_again(tmp_path: Path, fault: Fault) -> None:
    words = ["00", "01", "--workspace", str(tmp_path)]
    chance = random.Random(5)
    for number in range(5):
        killed(ROOT, fault, chance.uniform(3, 40), SIGNALS[number % len(SIGNALS)], *words)
    done = run(ROOT, fault, *words)
    assert done.returncode == 0, done.stdout
