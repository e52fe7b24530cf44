"""Supervised children: judged by their exit code, and nothing of them is left, however they or their owner end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from labkit import processes
from labkit.errors import ProcessFailed
from tests.processes_left import MARKER, marked, wait_until

# Starts a process that leaves its parent, its process group and its session, as a daemon does.
DAEMON = """
import os, subprocess, sys
subprocess.Popen(["sh", "-c", "setsid sleep 600 & exit 0"]).wait()
print("daemon started", flush=True)
"""
WAIT = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def marker() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "child.log"


def test_a_child_that_ends_gives_its_exit_code_and_its_output_is_in_the_log(log: Path) -> None:
    finished = processes.run(python("import sys; print('hello'); sys.exit(3)"), log, deadline_seconds=60)
    assert finished.returncode == 3
    assert log.read_text() == "hello\n"


def test_standard_error_goes_to_the_same_log(log: Path) -> None:
    processes.run(python("import sys; sys.stderr.write('oh\\n')"), log, deadline_seconds=60)
    assert log.read_text() == "oh\n"


def test_a_child_killed_by_a_signal_gives_128_and_its_number(log: Path) -> None:
    finished = processes.run(python("import os; os.kill(os.getpid(), 9)"), log, deadline_seconds=60)
    assert finished.returncode == 128 + signal.SIGKILL


def test_a_command_that_does_not_exist_ends_with_127_and_says_so(log: Path) -> None:
    finished = processes.run(["/no/such/command"], log, deadline_seconds=60)
    assert finished.returncode == 127
    assert "cannot start /no/such/command" in log.read_text()


def test_a_child_gets_the_given_environment_beside_ours(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_TEST_OURS", "1")
    code = "import os; print(os.environ['LABKIT_TEST_OURS'], os.environ['LABKIT_TEST_GIVEN'])"
    processes.run(python(code), log, deadline_seconds=60, env={"LABKIT_TEST_GIVEN": "2"})
    assert log.read_text() == "1 2\n"


def test_a_child_runs_where_it_is_told_and_reads_an_empty_input(log: Path, tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), repr(sys.stdin.read()))"
    processes.run(python(code), log, deadline_seconds=60, cwd=tmp_path)
    assert log.read_text() == f"{tmp_path} ''\n"


def test_the_peak_counts_the_memory_of_children_of_the_child(log: Path) -> None:
    inner = "import time; block = b'x' * 200_000_000; time.sleep(1)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    finished = processes.run(python(code), log, deadline_seconds=60)
    assert 200_000_000 < finished.peak_bytes < 400_000_000


def test_what_forks_share_counts_once(log: Path) -> None:
    code = """import os, time
block = bytearray(b'x' * 200_000_000)
for _ in range(3):
    if os.fork() == 0:
        break
time.sleep(1)"""
    finished = processes.run(python(code), log, deadline_seconds=60)
    assert 200_000_000 < finished.peak_bytes < 400_000_000


def test_a_look_that_had_to_wait_for_a_core_does_not_blind_the_next_ones(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = processes.tree_bytes

    def waits_first(pid: int, lends: int = 0, most_resident: int = 0) -> tuple[int, int]:
        monkeypatch.setattr(processes, "tree_bytes", look)
        time.sleep(0.5)  # by the clock, 25 s until the next look
        return look(pid, lends, most_resident)

    monkeypatch.setattr(processes, "tree_bytes", waits_first)
    grows_later = "import time; time.sleep(1); block = b'x' * 200_000_000; time.sleep(1)"
    finished = processes.run(python(grows_later), log, deadline_seconds=60)
    assert 200_000_000 < finished.peak_bytes < 400_000_000


def test_a_child_past_its_deadline_is_stopped_and_the_error_shows_the_end_of_its_log(log: Path, marker: str) -> None:
    code = "import time; print('loading the model', flush=True); time.sleep(600)"
    with pytest.raises(ProcessFailed, match=r"did not end within 2 s[\s\S]*loading the model"):
        processes.run(python(code), log, deadline_seconds=2, env={MARKER: marker})
    assert marked(marker) == []


def test_what_a_child_left_running_is_killed_when_the_child_ends(log: Path, marker: str) -> None:
    finished = processes.run(python(DAEMON), log, deadline_seconds=60, env={MARKER: marker})
    assert finished.returncode == 0
    assert "daemon started" in log.read_text()
    assert marked(marker) == []


def test_stopping_a_child_leaves_no_daemon_of_it(log: Path, marker: str) -> None:
    with processes.start(python(DAEMON + WAIT), log, env={MARKER: marker}):
        assert wait_until(lambda: log.exists() and "daemon started" in log.read_text())
        assert len(marked(marker)) >= 3  # guard, child, daemon
    assert marked(marker) == []


def test_a_child_that_ignores_sigterm_is_killed(log: Path, marker: str) -> None:
    with processes.start(python(STUBBORN), log, env={MARKER: marker}):
        assert wait_until(lambda: log.exists() and "deaf" in log.read_text())
    assert marked(marker) == []


def test_an_error_in_the_block_stops_the_child_too(log: Path, marker: str) -> None:
    with pytest.raises(RuntimeError), processes.start(python(WAIT), log, env={MARKER: marker}):
        raise RuntimeError
    assert marked(marker) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_owner_is_killed_everything_it_started_ends(number: int, log: Path, marker: str) -> None:
    owner = f"""
import pathlib, time
from labkit import processes
with processes.start({python(DAEMON + WAIT)!r}, pathlib.Path({str(log)!r})):
    time.sleep(600)
"""
    environment = {**os.environ, MARKER: marker}
    process = subprocess.Popen(python(owner), env=environment)
    assert wait_until(lambda: log.exists() and "daemon started" in log.read_text())
    assert len(marked(marker)) >= 4  # owner, guard, child, daemon
    process.send_signal(number)
    process.wait()
    assert wait_until(lambda: marked(marker) == [])


def test_progress_can_be_drawn_while_a_child_runs(log: Path) -> None:
    ticks: list[int] = []
    processes.run(python("import time; time.sleep(0.5)"), log, deadline_seconds=60, on_tick=lambda: ticks.append(1))
    assert ticks


def test_the_engine_interpreter_is_this_one_unless_a_site_names_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_ENGINE_PYTHON", raising=False)
    assert processes.engine_python() == sys.executable
    monkeypatch.setenv("LABKIT_ENGINE_PYTHON", "/opt/vllm/bin/python")
    assert processes.engine_python() == "/opt/vllm/bin/python"


def test_the_tail_of_a_log_is_its_last_lines_also_when_it_is_large(log: Path) -> None:
    log.parent.mkdir()
    log.write_text("".join(f"line {i}\n" for i in range(100_000)))
    assert processes.log_tail(log, lines=2) == "line 99998\nline 99999"
    assert processes.log_tail(log.with_name("none.log")) == "(no log)"
