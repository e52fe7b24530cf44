"""The command line: wrong use is told apart from failure, and nothing heavy is loaded to say so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.ledger import Ledger, Measurement
from labkit.ops.cli import main
from tests.ops.probes import clean_environment, labkit, write_lab


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_lab(tmp_path / "notebooks", "00_start_here")
    write_lab(tmp_path / "notebooks", "01_fp8_rtn", needs=["00_start_here"], makes=["fp8-dynamic"])
    for name in ("PROFILE", "WORKSPACE", "MODEL", "DATA"):
        monkeypatch.delenv(f"LABKIT_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "77"], "there is no lab '77'"),
        (["run", "--profile", "big"], "there is no profile 'big'"),
        (["run", "00", "-p", "limt", "5"], "no lab of this run has a parameter 'limt'"),
        (["run", "-p", "limit", "five", "00"], "'limit' can't be 'five'"),
        (["run", "--jobs", "0"], "jobs is 0"),
        (["results", "--workspace", "/dev/null/x", "--jsn"], "unrecognized arguments: --jsn"),
        (["run", "--prof", "tiny"], "unrecognized arguments: --prof"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_use_exits_with_2_and_a_message_before_anything_runs(course: Path, words: list[str], said: str) -> None:
    done = labkit(*words, cwd=course)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in course.iterdir()] == ["notebooks"]


def test_outside_a_course_it_falls_back_to_its_own_labs_or_says_what_to_do(tmp_path: Path) -> None:
    done = labkit("labs", cwd=tmp_path)
    assert done.returncode in (0, 2)
    assert ("00_start_here" in done.stdout) if done.returncode == 0 else ("change into the folder" in done.stderr)


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["results", "--help"], ["doctor", "--help"]])
def test_help_loads_nothing_heavy(course: Path, words: list[str]) -> None:
    code = f"""
import sys
from labkit.ops.cli import main
try:
    main({words!r})
except SystemExit as ended:
    heavy = {{"torch", "transformers", "vllm", "papermill", "jinja2", "numpy", "psutil", "IPython"}} & set(sys.modules)
    sys.exit(f"loaded {{heavy}}" if heavy else ended.code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: labkit")


@pytest.mark.parametrize(
    "words",
    [
        ["00", "--jobs", "2", "01", "-p", "limit", "-3", "--profile", "tiny"],
        ["--profile", "tiny", "-p", "limit", "-3", "00", "01", "--jobs", "2"],
        ["-p", "limit", "-3", "00", "--profile=tiny", "01", "--jobs=2"],
    ],
)
def test_labs_and_options_may_stand_in_any_order(
    course: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *words]) == 2  # everything was understood, up to the value of the limit
    assert "limit is -3" in capsys.readouterr().err


def test_results_of_an_empty_workspace_say_how_to_make_some(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results"]) == 0
    assert "`labkit run` makes them" in capsys.readouterr().out
    assert main(["results", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"variants": [], "headlines": []}


def test_results_show_the_newest_headlines_only(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score = {"task": "tiny_problems", "stderr": 0.011, "n": 500, "lab": "03_evaluation"}
    Ledger(course / "elsewhere" / "ledger.jsonl").append(
        [
            Measurement("accuracy", "exact_match", 0.5, "bf16", "tiny", **score),
            Measurement("accuracy", "exact_match", 0.94, "bf16", "tiny", **score),
            Measurement("accuracy", "exact_match", 0.1, "int8-rtn", "tiny", purpose="trap", **score),
            Measurement("size", "bytes", 11_900_000, "fp8-dynamic", "tiny", unit="bytes"),
        ]
    )
    assert main(["results", "--workspace", "elsewhere"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:7] == ["tiny", "bf16", "tiny_problems", "exact_match", "0.940", "±", "0.011"]
    assert "11,900,000" in lines[3]
    assert len(lines) == 4
    assert main(["results", "--workspace", "elsewhere", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["headlines"]
    assert [line["value"] for line in found] == [0.94, 11_900_000]


def test_a_damaged_ledger_is_a_failure_that_names_the_line(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (course / "workspace").mkdir()
    (course / "workspace" / "ledger.jsonl").write_text("{half\n")
    assert main(["results"]) == 1
    assert "line 1 is not JSON" in capsys.readouterr().err


def test_labs_are_listed_with_what_they_need_and_make(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["labs"]) == 0
    assert capsys.readouterr().out.splitlines()[3].split("  ")[0] == "01_fp8_rtn"
    assert main(["labs", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed[1]["needs"] == ["00_start_here"]
    assert listed[1]["makes"] == ["fp8-dynamic"]


def test_results_may_be_piped_to_a_reader_that_stops(course: Path) -> None:
    lines = [Measurement("size", "bytes", i, f"v{i}", "tiny") for i in range(20_000)]
    Ledger(course / "workspace" / "ledger.jsonl").append(lines)
    piped = f"{sys.executable} -m labkit.ops.cli results | head -1"
    done = subprocess.run(
        ["bash", "-c", piped], cwd=course, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("model")
    assert done.stderr == ""
