"""While a lab measures speed, those that run beside it stand still; and nothing is left of them, come what may."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from labkit import quiet
from labkit.errors import ProcessFailed
from labkit.ops import stillness
from labkit.ops.cli import main
from labkit.ops.labprocess import RunningLab, Setup
from labkit.ops.notebooks import find_labs
from tests.ops.probes import clean_environment, command, write_lab

NAMES = ("00_start_here", "01_other", "02_speed", "03_another")
# Each lab says twenty times a second that it is there, and a process that it started does so too. One that measures
# waits until the first has begun, and has a second of silence.
STAMP = """import os, pathlib, subprocess, sys, time
from labkit.quiet import quiet

room = pathlib.Path(workspace)
room.mkdir(exist_ok=True)
stamps = room / "{name}.stamps"
say = "open(sys.argv[1], 'a').write(str(time.time()) + chr(10))"
loop = "import sys, time\\nwhile True: " + say + "; time.sleep(0.05)"
child = subprocess.Popen([sys.executable, "-c", loop, str(stamps)])
deadline = time.time() + 60
if {measures}:
    while not (room / "00_start_here.stamps").exists() and time.time() < deadline:
        time.sleep(0.05)
    with quiet():
        began = time.time()
        time.sleep({seconds})
        span = began, time.time()
    (room / "{name}.quiet").write_text(" ".join(map(str, span)))
else:
    for _ in range(30):
        with open(stamps, "a") as file:
            print(time.time(), file=file)
        time.sleep(0.05)
child.kill()
child.wait()"""

Span = tuple[float, float]


def write_labs(folder: Path, measuring: tuple[str, ...], seconds: float, alone: bool = True) -> None:
    for name in NAMES:
        measures = name in measuring
        source = STAMP.format(name=name, measures=measures, seconds=seconds)
        write_lab(folder / "notebooks", name, source, alone=measures and alone)


def run_labs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, measuring: tuple[str, ...], jobs: int = 2, alone: bool = True
) -> tuple[dict[str, Span], dict[str, list[float]]]:
    """When each lab that measures had its silence; and when each said that it is there."""
    for name in [name for name in os.environ if name.startswith("LABKIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)
    write_labs(folder, measuring, 1.0, alone)
    assert main(["run", "--jobs", str(jobs)]) == 0
    room = folder / "workspace"
    began_and_ended = (list(map(float, (room / f"{name}.quiet").read_text().split())) for name in measuring)
    spans = {name: (began, ended) for name, (began, ended) in zip(measuring, began_and_ended, strict=True)}
    stamps = {name: sorted(map(float, (room / f"{name}.stamps").read_text().split())) for name in NAMES}
    return spans, stamps


def test_what_runs_beside_a_lab_stands_still_while_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spans, stamps = run_labs(tmp_path, monkeypatch, ("02_speed",))
    ((began, ended),) = spans.values()
    others = sorted(at for name in NAMES if name not in spans for at in stamps[name])
    assert [at for at in others if began < at < ended] == []
    assert others[0] < began, "nothing ran beside it"
    assert others[-1] > ended
    assert [at for at in stamps["02_speed"] if began < at < ended], "what it started itself went on"


@pytest.mark.parametrize("alone", [True, False])
def test_two_labs_that_measure_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    spans, _ = run_labs(tmp_path, monkeypatch, NAMES[1:3], alone=alone)
    first, second = sorted(spans.values())
    assert first[1] < second[0]


def test_one_at_a_time_labs_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, stamps = run_labs(tmp_path, monkeypatch, ("02_speed",), jobs=1)
    assert sorted(NAMES, key=lambda name: stamps[name][0]) == list(NAMES)


def test_the_time_that_a_lab_stands_still_counts_for_no_limit(tmp_path: Path) -> None:
    (lab,) = find_labs(write_lab(tmp_path / "notebooks", "00_start_here", "import time; time.sleep(60)").parent)
    for folder in ("out", "scratch"):
        (tmp_path / folder).mkdir()
    running = RunningLab(lab, {}, Setup(tmp_path / "out", tmp_path / "scratch", {}, timeout_seconds=3.0))
    try:
        for _ in range(2):
            running.stand(True)
            time.sleep(3.1)
            assert running.poll() is None
            running.stand(False)
            assert running.poll() is None
        wait_until(lambda: (result := running.poll()) is not None and result.verdict == "timeout")
    finally:
        running.stop("the test is over")


def test_a_run_that_is_killed_while_labs_stand_still_leaves_nothing(tmp_path: Path) -> None:
    write_labs(tmp_path, ("02_speed",), 60.0)
    words = command("run", "--jobs", "2")
    with subprocess.Popen(words, cwd=tmp_path, env=clean_environment(), stdout=subprocess.DEVNULL) as runner:
        try:
            wait_until(lambda: any(process.status() == psutil.STATUS_STOPPED for process in below(runner.pid)))
            found = below(runner.pid)
        finally:
            runner.send_signal(signal.SIGKILL)
    wait_until(lambda: not any(process.is_running() for process in found))
    assert len(found) > 4


def test_a_whole_tree_stands_still_and_goes_on() -> None:
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    with subprocess.Popen([sys.executable, "-c", f"{child}; time.sleep(60)"]) as guard:
        try:
            wait_until(lambda: len(below(guard.pid)) == 1)
            stillness.stand_still(guard.pid)
            assert [process.status() for process in below(guard.pid)] == [psutil.STATUS_STOPPED]
            assert psutil.Process(guard.pid).status() != psutil.STATUS_STOPPED, "it must be able to end the others"
            stillness.go_on(guard.pid)
            wait_until(lambda: [process.status() for process in below(guard.pid)] == [psutil.STATUS_SLEEPING])
        finally:
            for process in below(guard.pid):
                process.kill()
            guard.kill()


def test_a_process_that_is_gone_is_no_error() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    stillness.stand_still(gone.pid)
    stillness.go_on(gone.pid)


def test_without_a_runner_nothing_is_asked_and_without_an_answer_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(quiet.FOLDER, raising=False)
    with quiet.quiet():
        pass
    monkeypatch.setenv(quiet.FOLDER, str(tmp_path))
    monkeypatch.setattr(quiet, "LONGEST_WAIT_SECONDS", 0.2)
    (tmp_path / quiet.GRANTED).write_text("an answer to an earlier question")
    with pytest.raises(ProcessFailed, match="did not stop the other labs"), quiet.quiet():
        pytest.fail("it went on without an answer")
    assert not stillness.asks(tmp_path)
    stillness.grant(tmp_path)  # too late, and no error


def below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
