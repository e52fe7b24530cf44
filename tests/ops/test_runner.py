"""`labkit run`: real notebooks that end in every way there is, judged and reported as they ended.

One run of all probes answers most questions; the tests of it only read what that run left behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

from labkit.ledger import Ledger, Measurement
from labkit.ops.run import stop_signals
from tests.full_disk import run_with_room
from tests.ops.probes import PUBLISH, clean_environment, command, labkit, outputs, record, write_lab
from tests.processes_left import MARKER, marked, wait_until

# Each of two labs waits for the other's file: they end only if they run at the same time.
MEET = """import pathlib, time
here = pathlib.Path(workspace)
here.mkdir(exist_ok=True)
(here / "{own}").touch()
while not (here / "{other}").exists():
    time.sleep(0.1)"""
TELL = """import json, os, sys
print("facts", json.dumps({"python": sys.executable, "limit": limit, "profile": profile, "workspace": workspace,
      "lab": os.environ["LABKIT_LAB"], "run": os.environ["LABKIT_RUN"], "cwd": os.getcwd()}))"""
SKIP_PART = """import json, os
with open(os.environ["LABKIT_SKIPS_FILE"], "a") as file:
    file.write(json.dumps({"part": "the FP8 KV cache", "reason": "needs AVX-512"}) + "\\n")"""
UNSUPPORTED = "from labkit.errors import Unsupported\nraise Unsupported('nvfp4 has no kernel here', fix='use w4a16')"
DAEMON = 'import subprocess\nsubprocess.Popen(["sh", "-c", "setsid sleep 600 & exit 0"]).wait()'
LITTER = "import tempfile\ntempfile.mkdtemp()"
HANG = """import pathlib, time
pathlib.Path(workspace).mkdir(exist_ok=True)
pathlib.Path(workspace, "hanging").touch()
time.sleep(600)"""


# What each probe below earns, and part of the reason.
EARNED = {
    "00_start_here": ("passed", ""),
    "01_needed": ("passed", ""),
    "02_after": ("passed", ""),
    # after title, parameters and what papermill put in
    "03_fails": ("failed", "cell 5 (raise ValueError('boom <b>')): ValueError: boom <b>"),
    "04_blocked": ("skipped", "needs 03_fails, which failed"),
    "05_exits": ("failed", "the end mark is missing"),
    "06_dies": ("dead-kernel", "cell 5 (import os; os.kill(os.getpid(), 9)): its kernel died"),
    "07_no_end": ("failed", "the end mark is missing"),
    "08_here": ("passed", ""),  # this and the next one run at the same time
    "09_there": ("passed", ""),
    "10_unsupported": ("skipped", "nvfp4 has no kernel here Now: use w4a16"),
    "11_wants_it": ("skipped", "needs 10_unsupported, which was skipped: "),
}


@dataclass(frozen=True)
class Done:
    """One ended run: what the command said, what lies in its output folder, and in what was its temporary one."""

    process: subprocess.CompletedProcess[str]
    course: Path
    output: Path
    marker: str
    temporary: list[str]
    report: dict[str, Any]
    labs: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """A temporary folder as short as a user's: sockets lie in it."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def stray_kernel(home: Path) -> dict[str, str]:
    """The environment of a user for whom another program registered a `python3` kernel that can't run labs."""
    folder = home / ".local" / "share" / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "stray", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    startup = home / ".ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-stray.py").write_text("raise RuntimeError('a stray start-up file ran')")
    jupyter = str(home / ".local" / "share" / "jupyter")
    return {"HOME": str(home), "JUPYTER_PATH": jupyter, "JUPYTER_PREFER_ENV_PATH": "0"}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory, temporary: Path) -> Done:
    course = tmp_path_factory.mktemp("course {with braces} ünïcödé 🙂")
    notebooks = course / "notebooks"
    write_lab(notebooks, "00_start_here", TELL, record("bf16", 0.94), record("int8-rtn", 0.01, purpose="trap"))
    write_lab(notebooks, "01_needed", record("fp8-dynamic", 0.93), SKIP_PART, DAEMON, LITTER)
    write_lab(notebooks, "02_after", needs=["00_start_here", "01_needed"])
    write_lab(notebooks, "03_fails", "fine = 1", "raise ValueError('boom <b>')")
    write_lab(notebooks, "04_blocked", needs=["03_fails"])
    write_lab(notebooks, "05_exits", "import sys; sys.exit(0)")
    write_lab(notebooks, "06_dies", LITTER, "import os; os.kill(os.getpid(), 9)")
    write_lab(notebooks, "07_no_end", "x = 1", end=False)
    write_lab(notebooks, "08_here", MEET.format(own="a", other="b"))
    write_lab(notebooks, "09_there", MEET.format(own="b", other="a"))
    write_lab(notebooks, "10_unsupported", UNSUPPORTED)
    write_lab(notebooks, "11_wants_it", needs=["10_unsupported"], parameters="")
    old = Measurement("accuracy", "exact_match", 0.5, "int8-gptq", "tiny", task="tiny_problems", run="an older run")
    Ledger(course / "workspace" / "ledger.jsonl").append([old])
    marker = uuid.uuid4().hex
    env = {MARKER: marker, "TMPDIR": str(temporary), **stray_kernel(course / "home")}
    process = labkit("run", "-p", "limit", "7", "--jobs", "2", cwd=course, env=env)
    output = (course / "workspace" / "runs" / "latest").resolve()
    report = json.loads((output / "report.json").read_text())
    labs = {lab["name"]: lab for lab in report["labs"]}
    return Done(process, course, output, marker, os.listdir(temporary), report, labs)


def test_every_lab_has_the_verdict_that_it_earned_and_the_reason(everything: Done) -> None:
    assert everything.labs.keys() == EARNED.keys()
    for name, (verdict, reason) in EARNED.items():
        lab = everything.labs[name]
        assert (lab["verdict"], reason in lab["reason"]) == (verdict, True), everything.process.stdout
        assert lab["capability"] == (name in ("10_unsupported", "11_wants_it")), "what the machine can't do"
        ran = lab["log"] is not None
        assert ran == (name not in ("04_blocked", "11_wants_it"))
        assert (lab["peak_bytes"] > 50_000_000, lab["seconds"] > 0) == (ran, ran)
    assert everything.process.returncode == 1
    assert (everything.report["complete"], everything.report["stopped"]) == (True, "")


def test_a_cell_that_exits_with_0_does_not_pass_for_the_end(everything: Done) -> None:
    assert [everything.labs[name]["verdict"] for name in ("05_exits", "07_no_end")] == ["failed", "failed"]


def test_a_failure_shows_its_cell_its_traceback_and_the_log(everything: Done) -> None:
    failure = everything.labs["03_fails"]["failure"]
    assert failure["where"] == "cell 5 (raise ValueError('boom <b>'))"
    assert "----> 1 raise ValueError('boom <b>')" in failure["traceback"]
    assert "Executing Cell 5" in failure["log_tail"]
    assert "boom &lt;b&gt;" in (everything.output / "report.html").read_text()


def test_a_lab_starts_after_those_it_needs_with_this_interpreter_its_parameters_and_folder(everything: Done) -> None:
    said = everything.process.stdout.splitlines()
    for needed in ("00_start_here", "01_needed"):
        passed = next(i for i, line in enumerate(said) if line.startswith(f"{needed}: passed"))
        assert passed < said.index("02_after: started")
    printed = outputs(everything.output / "00_start_here.ipynb").partition("facts ")[2]
    assert json.JSONDecoder().raw_decode(printed)[0] == {
        "python": sys.executable,
        "limit": 7,
        "profile": "tiny",
        "workspace": str(everything.course / "workspace"),
        "lab": "00_start_here",
        "run": everything.report["run"],
        "cwd": str(everything.course / "notebooks"),
    }


def test_the_headline_holds_this_runs_scores_and_neither_traps_nor_older_runs(everything: Done) -> None:
    more = {"stderr": 0.01, "n": 500, "task": "tiny_problems"}
    assert everything.report["headline"] == {"bf16": {"value": 0.94, **more}, "fp8-dynamic": {"value": 0.93, **more}}
    assert everything.labs["00_start_here"]["figure"] == "exact_match: bf16 0.940"
    left_out = {"part": "the FP8 KV cache", "reason": "needs AVX-512"}
    assert everything.labs["01_needed"]["skipped"] == [left_out], "it stands in the report of a lab that passed"


def test_nothing_is_left_but_notebooks_logs_and_reports(everything: Done) -> None:
    assert marked(everything.marker) == [], "not even a daemon that a lab started"
    assert everything.temporary == []
    ran = [name for name, lab in everything.labs.items() if lab["log"]]
    expected = {f"{name}.{end}" for name in ran for end in ("ipynb", "log", "html")}
    found = {path.name for path in everything.output.iterdir()}
    assert found == expected | {"report.json", "report.html", "junit.xml"}
    for name in ran:
        nbformat.validate(nbformat.read(everything.output / f"{name}.ipynb", as_version=4))
    assert everything.process.stdout.splitlines()[-1] == str(everything.output / "report.html")


# --- runs that are cut short


@dataclass(frozen=True)
class Going:
    """A run that is under way: its first lab has passed, its second hangs with a daemon, its third waits."""

    process: subprocess.Popen[str]
    output: Path
    env: dict[str, str]

    def stopped(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Once no process is left: the report, and its labs by number."""
        assert wait_until(lambda: marked(self.env[MARKER]) == [])
        report = json.loads((self.output / "report.json").read_text())
        return report, {lab["name"][:2]: lab for lab in report["labs"]}


@pytest.fixture
def going(tmp_path: Path, temporary: Path) -> Going:
    notebooks = tmp_path / "notebooks"
    write_lab(notebooks, "00_start_here", record("bf16", 0.94))
    write_lab(notebooks, "01_hangs", DAEMON, LITTER, HANG)
    write_lab(notebooks, "02_waits")
    env = clean_environment({MARKER: uuid.uuid4().hex, "TMPDIR": str(temporary)})
    words = command("run", "--output", "out", "--workspace", "ws")
    process = subprocess.Popen(words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True)
    assert wait_until(lambda: (tmp_path / "ws" / "hanging").exists(), seconds=240)
    assert len(marked(env[MARKER])) >= 5  # runner, guard, papermill, kernel, daemon
    return Going(process, tmp_path / "out", env)


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_a_stopped_run_ends_its_labs_and_its_report_says_so(going: Going, number: int, code: int, name: str) -> None:
    going.process.send_signal(number)
    said, _ = going.process.communicate(timeout=120)
    assert going.process.returncode == code
    report, labs = going.stopped()
    assert (report["complete"], report["stopped"]) == (False, name)
    assert labs["00"]["verdict"] == "passed"
    assert labs["01"]["verdict"] == "failed"
    assert labs["01"]["reason"].endswith(f"stopped by {name}")
    assert (labs["02"]["verdict"], labs["02"]["reason"]) == ("skipped", f"the run was stopped by {name}")
    assert f"stopped by {name}" in (going.output / "report.html").read_text()
    assert said.splitlines()[-1] == str(going.output / "report.html")
    assert os.listdir(going.env["TMPDIR"]) == list(going.output.glob(".*")) == []


def test_a_killed_run_leaves_no_process_and_a_true_report_and_the_next_run_clears_the_rest(going: Going) -> None:
    going.process.kill()
    going.process.communicate()
    report, labs = going.stopped()
    assert not report["complete"]
    assert report["headline"]["bf16"]["value"] == 0.94
    assert labs["00"]["verdict"] == "passed"
    for name in ("01", "02"):
        assert labs[name]["reason"] == "it had not ended when this report was written"
    assert "the run was killed" in (going.output / "report.html").read_text()
    assert os.listdir(going.env["TMPDIR"])
    assert labkit("run", "00", "--output", "out", cwd=going.output.parent, env=going.env).returncode == 0
    assert os.listdir(going.env["TMPDIR"]) == list(going.output.glob(".*")) == []


def test_a_lab_past_its_time_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    write_lab(tmp_path / "notebooks", "00_start_here", DAEMON, HANG)
    marker = uuid.uuid4().hex
    done = labkit("run", "--timeout", "20", "--output", "out", cwd=tmp_path, env={MARKER: marker})
    assert done.returncode == 1
    lab = json.loads((tmp_path / "out" / "report.json").read_text())["labs"][0]
    assert lab["verdict"] == "timeout"
    assert lab["reason"].endswith("it did not end within 20 s")
    assert marked(marker) == []


def test_a_full_disk_does_not_destroy_an_earlier_executed_notebook(tmp_path: Path) -> None:
    write_lab(tmp_path / "notebooks", "00_start_here", "from IPython.display import HTML\nHTML('x' * 2_000_000)")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00_start_here.ipynb").write_text("the good copy of yesterday")
    done = run_with_room(command("run", "--output", "out"), 1_000_000, env=clean_environment(), cwd=tmp_path)
    assert done.returncode == 1
    assert (tmp_path / "out" / "00_start_here.ipynb").read_text() == "the good copy of yesterday"
    lab = json.loads((tmp_path / "out" / "report.json").read_text())["labs"][0]
    assert (lab["verdict"], lab["notebook"]) == ("failed", None)
    assert "an older copy was left as it was" in lab["reason"]
    assert "File too large" in lab["failure"]["log_tail"]


def test_a_run_in_which_all_passed_exits_with_0_and_needed_labs_run_first(tmp_path: Path) -> None:
    write_lab(tmp_path / "notebooks", "00_start_here")
    write_lab(tmp_path / "notebooks", "01_makes", PUBLISH, makes=["int8-rtn"])
    write_lab(tmp_path / "notebooks", "02_reads", needs=["01_makes"])
    for wanted in (["01_makes: started", "02_reads: started"], ["02_reads: started"]):
        done = labkit("run", "2", cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        assert [line for line in done.stdout.splitlines() if line.endswith("started")] == wanted


def test_a_signal_is_noted_and_the_handlers_are_put_back_and_nohup_outlives_its_terminal() -> None:
    hangup, before = signal.signal(signal.SIGHUP, signal.SIG_DFL), signal.getsignal(signal.SIGTERM)
    try:
        for ignored, noted in ((signal.SIG_DFL, [signal.SIGTERM, signal.SIGHUP]), (signal.SIG_IGN, [signal.SIGTERM])):
            signal.signal(signal.SIGHUP, ignored)
            with stop_signals() as received:
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGHUP)
                assert received == noted
            assert signal.getsignal(signal.SIGTERM) == before
    finally:
        signal.signal(signal.SIGHUP, hangup)
