"""`labkit run`: real notebooks that end in every way there is, judged and reported as they ended.

One run of all probes answers most questions; the tests of it only read what that run left behind.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import nbformat
import pytest

from labkit.ledger import Ledger, Measurement
from tests.full_disk import run_with_room
from tests.ops.probes import clean_environment, command, labkit, outputs, record, write_lab
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
      "lab": os.environ["LABKIT_LAB"], "run": os.environ["LABKIT_RUN"], "jobs": os.environ["LABKIT_JOBS"],
      "cwd": os.getcwd()}))"""
SKIP_PART = """import json, os
with open(os.environ["LABKIT_SKIPS_FILE"], "a") as file:
    file.write(json.dumps({"part": "the FP8 KV cache", "reason": "needs AVX-512"}) + "\\n")"""
UNSUPPORTED = "from labkit.errors import Unsupported\nraise Unsupported('nvfp4 has no kernel here', fix='use w4a16')"
DAEMON = 'import subprocess\nsubprocess.Popen(["sh", "-c", "setsid sleep 600 & exit 0"]).wait()'
HANG = """import pathlib, time
pathlib.Path(workspace).mkdir(exist_ok=True)
pathlib.Path(workspace, "hanging").touch()
time.sleep(600)"""


@dataclass(frozen=True)
class Done:
    """One ended run: what the command said and what lies in its output folder."""

    process: subprocess.CompletedProcess[str]
    course: Path
    output: Path
    marker: str

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.output / "report.json").read_text())

    def lab(self, name: str) -> dict[str, Any]:
        return next(lab for lab in self.report["labs"] if lab["name"] == name)


def stray_kernel(home: Path) -> dict[str, str]:
    """The environment of a user for whom another program registered a `python3` kernel that can't run labs."""
    folder = home / ".local" / "share" / "jupyter" / "kernels" / "python3"
    folder.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "stray", "language": "python"}
    (folder / "kernel.json").write_text(json.dumps(spec))
    startup = home / ".ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-stray.py").write_text("raise RuntimeError('a stray start-up file ran')")
    return {
        "HOME": str(home),
        "JUPYTER_PATH": str(home / ".local" / "share" / "jupyter"),
        "JUPYTER_PREFER_ENV_PATH": "0",
    }


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Done:
    course = tmp_path_factory.mktemp("course {with braces}")
    notebooks = course / "notebooks"
    write_lab(notebooks, "00_start_here", TELL, record("bf16", 0.94), record("int8-rtn", 0.01, purpose="trap"))
    write_lab(notebooks, "01_needed", record("fp8-dynamic", 0.93), SKIP_PART, DAEMON)
    write_lab(notebooks, "02_after", "from labkit.workspace import Workspace", needs=["00_start_here", "01_needed"])
    write_lab(notebooks, "03_fails", "fine = 1", "raise ValueError('boom <b>')")
    write_lab(notebooks, "04_blocked", needs=["03_fails"])
    write_lab(notebooks, "05_exits", "import sys; sys.exit(0)")
    write_lab(notebooks, "06_dies", "import os; os.kill(os.getpid(), 9)")
    write_lab(notebooks, "07_no_end", "x = 1", end=False)
    write_lab(notebooks, "08_here", MEET.format(own="a", other="b"))
    write_lab(notebooks, "09_there", MEET.format(own="b", other="a"))
    write_lab(notebooks, "10_unsupported", UNSUPPORTED)
    write_lab(notebooks, "11_wants_it", needs=["10_unsupported"], parameters="")
    old = Measurement("accuracy", "exact_match", 0.5, "int8-gptq", "tiny", task="tiny_problems", run="an older run")
    Ledger(course / "workspace" / "ledger.jsonl").append([old])
    marker = uuid.uuid4().hex
    env = {MARKER: marker, **stray_kernel(course / "home")}
    process = labkit("run", "-p", "limit", "7", "--jobs", "2", cwd=course, env=env)
    return Done(process, course, (course / "workspace" / "runs" / "latest").resolve(), marker)


def test_every_lab_has_the_verdict_that_it_earned(everything: Done) -> None:
    assert {lab["name"]: lab["verdict"] for lab in everything.report["labs"]} == {
        "00_start_here": "passed",
        "01_needed": "passed",
        "02_after": "passed",
        "03_fails": "failed",
        "04_blocked": "skipped",
        "05_exits": "failed",
        "06_dies": "dead-kernel",
        "07_no_end": "failed",
        "08_here": "passed",
        "09_there": "passed",
        "10_unsupported": "skipped",
        "11_wants_it": "skipped",
    }, everything.process.stdout


def test_a_run_in_which_something_failed_exits_with_1_and_is_complete(everything: Done) -> None:
    assert everything.process.returncode == 1
    assert everything.report["complete"]
    assert everything.report["stopped"] == ""


def test_a_failure_names_its_cell_and_error_and_shows_the_log(everything: Done) -> None:
    failure = everything.lab("03_fails")["failure"]
    assert failure["where"] == "cell 5 (raise ValueError('boom <b>'))"  # title, parameters, injected, fine, this
    assert failure["error"] == "ValueError: boom <b>"
    assert "----> 1 raise ValueError('boom <b>')" in failure["traceback"]
    assert "Executing Cell 5" in failure["log_tail"]
    assert "boom &lt;b&gt;" in (everything.output / "report.html").read_text()


def test_a_cell_that_exits_with_0_does_not_pass_for_the_end(everything: Done) -> None:
    assert "the end mark is missing" in everything.lab("05_exits")["reason"]
    assert "the end mark is missing" in everything.lab("07_no_end")["reason"]


def test_a_dead_kernel_is_reported_with_the_cell_that_it_died_in(everything: Done) -> None:
    assert everything.lab("06_dies")["reason"] == "cell 4 (import os; os.kill(os.getpid(), 9)): its kernel died"


def test_a_lab_whose_need_failed_is_skipped_with_that_reason_and_does_not_pass(everything: Done) -> None:
    lab = everything.lab("04_blocked")
    assert (lab["reason"], lab["capability"], lab["notebook"]) == ("needs 03_fails, which failed", False, None)


def test_what_the_machine_cannot_do_is_skipped_with_the_reason_and_so_is_what_needs_it(everything: Done) -> None:
    lab = everything.lab("10_unsupported")
    assert "nvfp4 has no kernel here Now: use w4a16" in lab["reason"]
    assert lab["capability"]
    blocked = everything.lab("11_wants_it")
    assert blocked["reason"].startswith("needs 10_unsupported, which was skipped: ")
    assert blocked["capability"]


def test_a_lab_starts_only_after_those_it_needs_have_passed(everything: Done) -> None:
    said = everything.process.stdout.splitlines()
    started = said.index("02_after: started")
    for needed in ("00_start_here", "01_needed"):
        assert next(i for i, line in enumerate(said) if line.startswith(f"{needed}: passed")) < started


def test_two_jobs_run_at_the_same_time(everything: Done) -> None:
    assert everything.lab("08_here")["verdict"] == everything.lab("09_there")["verdict"] == "passed"


def test_labs_run_with_this_interpreter_and_their_parameters_in_their_own_folder(everything: Done) -> None:
    printed = outputs(everything.output / "00_start_here.ipynb").partition("facts ")[2]
    assert json.JSONDecoder().raw_decode(printed)[0] == {
        "python": sys.executable,
        "limit": 7,
        "profile": "tiny",
        "workspace": str(everything.course / "workspace"),
        "lab": "00_start_here",
        "run": everything.report["run"],
        "jobs": "2",
        "cwd": str(everything.course / "notebooks"),
    }


def test_the_headline_holds_this_runs_scores_and_neither_traps_nor_older_runs(everything: Done) -> None:
    assert everything.report["headline"] == {
        "bf16": {"value": 0.94, "stderr": 0.01, "n": 500, "task": "tiny_problems"},
        "fp8-dynamic": {"value": 0.93, "stderr": 0.01, "n": 500, "task": "tiny_problems"},
    }
    assert everything.lab("00_start_here")["figure"] == "exact_match: bf16 0.940"


def test_a_part_that_was_left_out_stands_in_the_report_of_a_lab_that_passed(everything: Done) -> None:
    assert everything.lab("01_needed")["skipped"] == [{"part": "the FP8 KV cache", "reason": "needs AVX-512"}]


def test_time_and_memory_of_each_lab_that_ran_are_measured(everything: Done) -> None:
    for lab in everything.report["labs"]:
        ran = lab["log"] is not None
        assert (lab["peak_bytes"] > 50_000_000) == ran
        assert (lab["seconds"] > 0) == ran


def test_no_process_is_left_not_even_a_daemon_that_a_lab_started(everything: Done) -> None:
    assert marked(everything.marker) == []


def test_the_output_folder_holds_notebooks_logs_and_reports_and_nothing_temporary(everything: Done) -> None:
    ran = [lab["name"] for lab in everything.report["labs"] if lab["log"]]
    expected = {f"{name}.{end}" for name in ran for end in ("ipynb", "log", "html")}
    found = {path.name for path in everything.output.iterdir()}
    assert found == expected | {"report.json", "report.html", "junit.xml"}
    for name in ran:
        nbformat.validate(nbformat.read(everything.output / f"{name}.ipynb", as_version=4))


def test_the_terminal_shows_the_table_and_ends_with_the_page(everything: Done) -> None:
    lines = everything.process.stdout.splitlines()
    assert lines[-1] == str(everything.output / "report.html")
    header = next(line for line in lines if line.startswith("lab "))
    assert header.split("  ")[0] == "lab"
    assert "peak memory" in header


def test_junit_is_red_where_the_run_is(everything: Done) -> None:
    suite = ElementTree.parse(everything.output / "junit.xml").getroot()[0]
    red = {case.get("name") for case in suite if case.find("failure") is not None or case.find("error") is not None}
    assert red == {"03_fails", "04_blocked", "05_exits", "06_dies", "07_no_end"}


# --- runs that are cut short


@dataclass(frozen=True)
class Going:
    """A run that is under way: its first lab has passed, its second hangs with a daemon, its third waits."""

    process: subprocess.Popen[str]
    output: Path
    marker: str

    def labs(self) -> dict[str, Any]:
        return {lab["name"][:2]: lab for lab in json.loads((self.output / "report.json").read_text())["labs"]}


@pytest.fixture
def going(tmp_path: Path) -> Going:
    notebooks = tmp_path / "notebooks"
    write_lab(notebooks, "00_start_here", record("bf16", 0.94))
    write_lab(notebooks, "01_hangs", DAEMON, HANG)
    write_lab(notebooks, "02_waits")
    marker = uuid.uuid4().hex
    process = subprocess.Popen(
        command("run", "--output", "out", "--workspace", "ws"),
        cwd=tmp_path,
        env=clean_environment({MARKER: marker}),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert wait_until(lambda: (tmp_path / "ws" / "hanging").exists(), seconds=240)
    assert len(marked(marker)) >= 5  # runner, guard, papermill, kernel, daemon
    return Going(process, tmp_path / "out", marker)


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_a_stopped_run_ends_its_labs_and_its_report_says_so(going: Going, number: int, code: int, name: str) -> None:
    going.process.send_signal(number)
    said, _ = going.process.communicate(timeout=120)
    assert going.process.returncode == code
    assert marked(going.marker) == []
    report = json.loads((going.output / "report.json").read_text())
    assert (report["complete"], report["stopped"]) == (False, name)
    labs = going.labs()
    assert labs["00"]["verdict"] == "passed"
    assert labs["01"]["verdict"] == "failed"
    assert labs["01"]["reason"].endswith(f"stopped by {name}")
    assert (labs["02"]["verdict"], labs["02"]["reason"]) == ("skipped", f"the run was stopped by {name}")
    assert f"stopped by {name}" in (going.output / "report.html").read_text()
    assert said.splitlines()[-1] == str(going.output / "report.html")


def test_a_killed_run_leaves_no_process_and_a_report_that_is_true(going: Going) -> None:
    going.process.kill()
    going.process.communicate()
    assert wait_until(lambda: marked(going.marker) == [])
    report = json.loads((going.output / "report.json").read_text())
    assert not report["complete"]
    assert report["headline"]["bf16"]["value"] == 0.94
    labs = going.labs()
    assert labs["00"]["verdict"] == "passed"
    for name in ("01", "02"):
        assert labs[name]["reason"] == "it had not ended when this report was written"
    assert "the run was killed" in (going.output / "report.html").read_text()


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
    publish = """import pathlib
from labkit.workspace import Workspace, publishing
with publishing(Workspace(pathlib.Path(workspace)).checkpoint("int8-rtn"), base="tiny") as stage:
    (stage / "config.json").write_text("{}")"""
    write_lab(tmp_path / "notebooks", "00_start_here")
    write_lab(tmp_path / "notebooks", "01_makes", publish, makes=["int8-rtn"])
    write_lab(tmp_path / "notebooks", "02_reads", needs=["01_makes"])
    first = labkit("run", "2", cwd=tmp_path)
    assert first.returncode == 0, first.stdout
    assert [line for line in first.stdout.splitlines() if line.endswith("started")] == [
        "01_makes: started",
        "02_reads: started",
    ]
    second = labkit("run", "2", cwd=tmp_path)
    assert second.returncode == 0, second.stdout
    assert [line for line in second.stdout.splitlines() if line.endswith("started")] == ["02_reads: started"]
