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

from labkit import process
from labkit.errors import ProcessFailed
from tests.processes_left import MARKER, marked, wait_until

# Starts a process that leaves its parent, its process group and its session, as a daemon does.
DAEMON = """
import os, subprocess, sys
subprocess.Popen(["sh", "-c", "setsid sleep 600 & exit 0"]).wait()
print("ready", flush=True)
"""
WAIT = "import time; time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); " + WAIT


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def marker() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "child.log"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (python("import sys; print('oh', file=sys.stderr); sys.exit(3)"), 3, "oh\n"),
        (python("import os; os.kill(os.getpid(), 9)"), 128 + signal.SIGKILL, ""),
        (["/no/such"], 127, "cannot start /no/such: [Errno 2] No such file or directory: '/no/such'\n"),
    ],
    ids=["exit", "signal", "no command"],
)
def test_a_child_ends_with_a_code_and_its_output_is_in_the_log(log, command, code, said) -> None:
    assert process.run(command, log, deadline_seconds=60).returncode == code
    assert log.read_text() == said


def test_a_child_has_our_environment_and_the_given_one_its_own_folder_and_no_input(log, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TEST_OURS", "1")
    code = "import os, sys; print(os.environ['TEST_OURS'], os.environ['TEST_GIVEN'], os.getcwd(), sys.stdin.read())"
    ticks: list[int] = []
    more = {"deadline_seconds": 60, "env": {"TEST_GIVEN": "2"}, "cwd": tmp_path}
    process.run(python(code), log, **more, on_tick=lambda: ticks.append(1))
    assert log.read_text() == f"1 2 {tmp_path} \n"
    assert ticks, "progress can be drawn while it runs"


GROWS = 'block = b"x" * 200_000_000'
GROWN = range(200_000_000, 400_000_000)


@pytest.mark.parametrize(
    "code",
    [
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; {GROWS}; time.sleep(3)'])",
        f"import os, time; {GROWS}; os.fork() and os.fork() and os.fork(); time.sleep(3)",
    ],
    ids=["a child's child", "what forks share, once"],
)
def test_the_peak_counts_all_memory_below_a_child_once(log: Path, code: str) -> None:
    assert process.run(python(code), log, deadline_seconds=60).peak_bytes in GROWN


def test_a_look_that_had_to_wait_for_a_core_does_not_blind_the_next_ones(log, monkeypatch) -> None:
    look = process.tree_bytes

    def waits_first(pid: int, most_resident: int = 0) -> tuple[int, int]:
        monkeypatch.setattr(process, "tree_bytes", look)
        time.sleep(0.5)  # by the clock, 25 s until the next look
        return look(pid, most_resident)

    monkeypatch.setattr(process, "tree_bytes", waits_first)
    grows_later = python(f"import time; time.sleep(1); {GROWS}; time.sleep(3)")
    assert process.run(grows_later, log, deadline_seconds=60).peak_bytes in GROWN


def test_a_child_past_its_deadline_is_stopped_and_the_error_shows_the_end_of_its_log(log: Path, marker: str) -> None:
    code = "print('loading the model', flush=True); " + WAIT
    with pytest.raises(ProcessFailed, match=r"did not end within 2 s[\s\S]*loading the model"):
        process.run(python(code), log, deadline_seconds=2, env={MARKER: marker})
    assert marked(marker) == []


def test_what_a_child_left_running_is_killed_when_the_child_ends(log: Path, marker: str) -> None:
    assert process.run(python(DAEMON), log, deadline_seconds=60, env={MARKER: marker}).returncode == 0
    assert log.read_text() == "ready\n"
    assert marked(marker) == []


@pytest.mark.parametrize(("code", "processes"), [(DAEMON + WAIT, 3), (STUBBORN, 2)], ids=["a daemon", "deaf"])
def test_a_block_that_ends_leaves_nothing_of_its_child(log, marker, code: str, processes: int) -> None:
    with process.Child(python(code), log, env={MARKER: marker}):
        assert wait_until(lambda: log.exists() and "ready" in log.read_text())
        assert len(marked(marker)) >= processes
    assert marked(marker) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_owner_is_killed_everything_it_started_ends(number: int, log: Path, marker: str) -> None:
    code = f"""
import pathlib, time
from labkit import process
with process.Child({python(DAEMON + WAIT)!r}, pathlib.Path({str(log)!r})):
    time.sleep(600)
"""
    owner = subprocess.Popen(python(code), env={**os.environ, MARKER: marker})
    assert wait_until(lambda: log.exists() and "ready" in log.read_text())
    assert len(marked(marker)) >= 4, "owner, guard, child, daemon"
    owner.send_signal(number)
    owner.wait()
    assert wait_until(lambda: marked(marker) == [])


def test_what_children_write_to_a_stream_is_in_the_log_as_long_as_the_block_lasts(log: Path, capfd) -> None:
    def complain(text: str) -> None:
        subprocess.run(["sh", "-c", f"echo {text} >&2; echo {text}; exit {'1' * ('again' in text)}"], check=True)

    with process.children_to_log(log, 2):
        complain("inside")
    with pytest.raises(subprocess.CalledProcessError), process.children_to_log(log, 1, 2):
        complain("again")
    complain("after")
    assert log.read_text() == "inside\nagain\nagain\n"
    assert capfd.readouterr() == ("inside\nafter\n", "after\n")


def test_the_tail_of_a_log_is_its_last_lines_also_when_it_is_large(log: Path) -> None:
    log.parent.mkdir()
    log.write_text("".join(f"line {i}\n" for i in range(100_000)))
    assert process.log_tail(log, lines=2) == "line 99998\nline 99999"
    assert process.log_tail(log.with_name("none.log")) == "(no log)"
