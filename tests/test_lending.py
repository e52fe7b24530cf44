"""A run's fork server: labs that start once it is ready have their engines from it, and end with all that is theirs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from labkit import hardware, processes
from labkit.engine import Lender, forked
from tests.ops.probes import clean_environment, command, write_lab
from tests.processes_left import engines, wait_until, words

pytestmark = pytest.mark.skipif(hardware.engine_build() != "cpu", reason="engines are forked on a CPU only")

# A lab: what its engine, which runs for a second, says of itself; and the lab's own parent.
LAB = """
import json, os, sys
from pathlib import Path
from labkit.engine import run_script
from labkit.lab.notebook import quiet_libraries
from labkit.profiles import TINY

quiet_libraries()
asked = "import os, sys, time; time.sleep(1); "
asked += "grandparent = open(f'/proc/{os.getppid()}/stat').read().rsplit(')', 1)[1].split()[1]; "
asked += "answer = [int(grandparent), 'vllm' in sys.modules]"
folder = Path(sys.argv[1])
more = {"OMP_NUM_THREADS": "1"} if sys.argv[2:] else {}
log = folder / "engine.log"
found = run_script(asked, {}, log=log, engine=TINY.engine, offline=True, deadline_seconds=120, env=more)
(folder / "answer").write_text(json.dumps([os.getppid(), *found]))
"""


def lab(lender: Lender, folder: Path, *more: str) -> list[int]:
    """What a lab found: its parent, its engine's server, and whether that has vLLM."""
    folder.mkdir()
    command = [sys.executable, "-c", LAB, str(folder), *more]
    finished = processes.run(command, folder / "log", deadline_seconds=180, launch=lender.launch)
    assert finished.returncode == 0, (folder / "log").read_text()
    found: list[int] = json.loads((folder / "answer").read_text())
    return found


def servers() -> set[int]:
    """The guards of the fork servers that are this process's children: a run's, and its own of other tests."""
    return {child.pid for child in psutil.Process().children() if str(forked.SERVER) in words(child)}


@pytest.fixture(scope="module")
def lender(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lender]:
    """One that has been asked by a first lab, and is ready."""
    before = servers()
    lender = Lender()
    try:
        parent, server, has_vllm = lab(lender, tmp_path_factory.mktemp("lender") / "first")
        assert parent != server, "the first lab has a server of its own"
        assert has_vllm
        lender.listen()
        assert lender._server
        assert wait_until(lambda: lender._server.ready)
        yield lender
    finally:
        lender.stop()
    assert engines() == []
    assert servers() <= before


def test_a_labs_engines_are_forks_of_what_the_run_lends_it(lender: Lender, tmp_path: Path) -> None:
    parent, server, has_vllm = lab(lender, tmp_path / "lab")
    assert server == parent, "the process that runs the lab"
    assert has_vllm


def test_an_engine_with_another_environment_has_a_server_of_the_labs_own(lender: Lender, tmp_path: Path) -> None:
    parent, server, has_vllm = lab(lender, tmp_path / "lab", "more")
    assert server != parent
    assert has_vllm


LEAVES = """
import sys
from pathlib import Path
from labkit import open_lab, processes
from labkit.engine import CHILD, engine_env, launch
from labkit.profiles import TINY

lab = open_lab("03_evaluation", workspace=sys.argv[1])
folder = Path(sys.argv[1]) / "engine"
folder.mkdir(parents=True)
(folder / "script.py").write_text("import time; time.sleep(600)")
(folder / "job.json").write_text("{}")
command = [processes.engine_python(), str(CHILD), str(folder)]
child = processes.Child(command, folder / "log", engine_env(TINY.engine, offline=True), launch=launch)
assert child.pid
lab.end()
"""


def test_a_lab_that_leaves_an_engine_of_the_runs_server_running_does_not_end_well(
    lender: Lender, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", LEAVES, str(tmp_path / "workspace")]
    finished = processes.run(command, tmp_path / "log", deadline_seconds=180, launch=lender.launch)
    assert finished.returncode == 1
    assert "1 processes of this lab still run" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(("ends", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 137), ("pass", 0)])
def test_a_lent_lab_ends_as_it_would_alone_and_takes_all_along(
    ends: str, code: int, lender: Lender, tmp_path: Path
) -> None:
    source = (
        f"import os, subprocess, sys; subprocess.Popen(['setsid', 'sleep', '600']); print('said', flush=True); {ends}"
    )
    child = processes.Child([sys.executable, "-c", source], tmp_path / "log", {}, tmp_path, lender.launch)
    guard = psutil.Process(child.pid)
    below: list[psutil.Process] = []

    def ended() -> bool:
        if guard.is_running() and guard.status() != psutil.STATUS_ZOMBIE:
            below.extend(guard.children(recursive=True))
        return child.poll() is not None

    assert wait_until(ended)
    assert child.finished().returncode == code
    assert (tmp_path / "log").read_text() == "said\n"
    assert not [process for process in below if process.is_running()]


def test_a_lent_lab_that_is_stopped_leaves_nothing(lender: Lender, tmp_path: Path) -> None:
    source = "import subprocess, time; subprocess.Popen(['setsid', 'sleep', '600']); time.sleep(600)"
    child = processes.Child([sys.executable, "-c", source], tmp_path / "log", {}, tmp_path, lender.launch)
    guard = psutil.Process(child.pid)
    assert wait_until(lambda: len(guard.children(recursive=True)) == 3), "what is lent, the lab, and its daemon"
    below = guard.children(recursive=True)
    child.stop()
    assert not [process for process in below if process.is_running()]


def test_what_is_lent_counts_for_a_lab_only_while_its_engines_run(lender: Lender, tmp_path: Path) -> None:
    with processes.start(["sleep", "600"], tmp_path / "log", launch=lender.launch) as child:
        guard = psutil.Process(child.pid)
        assert wait_until(lambda: len(guard.children(recursive=True)) == 2)
        assert processes.tree_bytes(child.pid)[0] > 300e6
        child.peak_bytes = child._most_resident = 0
        until = time.monotonic() + 1
        while time.monotonic() < until:
            assert child.poll() is None
        assert 1e6 < child.peak_bytes < 100e6
    child = processes.Child([sys.executable, "-c", LAB, str(tmp_path)], tmp_path / "log", None, None, lender.launch)
    assert wait_until(lambda: child.poll() is not None)
    assert child._most_resident > 1e9, "the engine's 0.6 GB, and those of what it was forked from"
    assert child.finished().peak_bytes > 300e6, "what both hold, with the pages that they share counted once"


def test_a_lab_whose_server_is_killed_ends_with_it(tmp_path: Path, lender: Lender) -> None:
    with processes.start(["sleep", "600"], tmp_path / "log", launch=lender.launch) as child:
        guard = psutil.Process(child.pid)
        assert wait_until(lambda: len(guard.children(recursive=True)) == 2)
        (serving,) = guard.children()
        serving.send_signal(signal.SIGKILL)
        assert wait_until(lambda: child.poll() is not None)
        assert child.finished().returncode == 137


def test_a_run_with_a_long_temporary_folder_lends_nothing_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    lender = Lender()
    try:
        lender.listen()
        assert processes.run(["true"], tmp_path / "log", deadline_seconds=60, launch=lender.launch).returncode == 0
    finally:
        lender.stop()
    assert list(folder.iterdir()) == []


def test_nobody_is_granted_silence_while_the_server_imports() -> None:
    lender = Lender()
    try:
        assert lender.settled
        lender._server = forked.OwnForkServer(sys.executable, {"LABKIT_NOTHING": "1"})
        assert not lender.settled
        assert wait_until(lambda: lender.settled)
        assert lender._server.ready
    finally:
        lender.stop()


@pytest.mark.long
def test_a_server_that_idled_away_starts_again_for_the_next_lab_that_tells(tmp_path: Path) -> None:
    lender = Lender()
    try:
        lab(lender, tmp_path / "first")
        lender.listen()
        before = lender._server
        assert before
        before.stop()
        lab(lender, tmp_path / "second")
        lender.listen()
        assert lender._server
        assert lender._server is not before
        assert lender._server.alive
    finally:
        lender.stop()


# Three labs of one run. The first starts an engine, so that the run starts its server; the second asks for silence as
# soon as it has, and looks whether that server works meanwhile; the third, which starts later, has an engine of it.
ENGINE = """
import psutil
from pathlib import Path
from labkit.engine import run_script
from labkit.lab.notebook import quiet_libraries
from labkit.profiles import TINY
quiet_libraries()
asked = "import os; answer = int(open(f'/proc/{os.getppid()}/stat').read().rsplit(')', 1)[1].split()[1])"
log = Path(workspace) / "engine.log"
server = run_script(asked, {}, log=log, engine=TINY.engine, offline=True, deadline_seconds=120)
lent = server in [process.pid for process in psutil.Process().parents()]
"""
SPEED = """
import psutil, time
from labkit.engine import forked
from labkit.quiet import quiet

def of_the_run():
    (runner,) = [one for one in psutil.Process().parents() if {"labkit.ops.cli", "run"} <= set(one.cmdline())]
    found = [one for one in runner.children() if str(forked.SERVER) in one.cmdline()]
    return [one for guard in found for one in guard.children()]

deadline = time.monotonic() + 60
while not of_the_run() and time.monotonic() < deadline:
    time.sleep(0.02)
with quiet():
    (server,) = of_the_run()
    before = server.cpu_times().user
    time.sleep(1)
    assert server.cpu_times().user - before < 0.1, "it imports beside what is measured"
"""


def test_a_run_has_a_server_for_later_labs_and_grants_no_silence_while_that_imports(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    write_lab(folder, "00_start_here", ENGINE + "assert not lent")
    write_lab(folder, "01_speed", SPEED, alone=True)
    write_lab(folder, "02_later", ENGINE + "assert lent", needs=["00_start_here"])
    labs = [*command("run"), "--jobs", "2"]
    done = subprocess.run(labs, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout


def test_no_server_starts_that_no_lab_has_asked_for() -> None:
    lender = Lender()
    lender.listen()
    assert lender._server is None
    lender.stop()


def test_when_the_runs_server_is_killed_its_labs_end_and_the_next_one_starts_without_it(
    lender: Lender, tmp_path: Path
) -> None:
    """The last test here: nothing can be lent after it."""
    source = "import subprocess, time; subprocess.Popen(['setsid', 'sleep', '600']); time.sleep(600)"
    with processes.start([sys.executable, "-c", source], tmp_path / "log", launch=lender.launch) as child:
        guard = psutil.Process(child.pid)
        assert wait_until(lambda: len(guard.children(recursive=True)) == 3)
        below = guard.children(recursive=True)
        assert lender._server
        (serving,) = [one for one in psutil.Process(lender._server._child.pid).children() if one.pid != child.pid]
        serving.kill()
        assert wait_until(lambda: child.poll() is not None)
        assert child.finished().returncode == 137
        assert wait_until(lambda: not [process for process in below if process.is_running()])
    assert processes.run(["true"], tmp_path / "log", deadline_seconds=60, launch=lender.launch).returncode == 0
