"""The command line: wrong use is told apart from failure, and nothing heavy is loaded to say so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.cli import main
from labkit.ledger import Ledger, Measurement
from tests.ops.probes import clean_environment, command, write_lab

COMMANDS = "run results doctor labs book serve publish fetch quantize evaluate compare pipeline".split()


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
        (["run", "77"], "labkit run: there is no lab '77'"),
        (["run", "--profile", "big"], "there is no profile 'big'"),
        (["run", "00", "-p", "limt", "5"], "no lab of this run has a parameter 'limt'"),
        (["run", "-p", "limit", "five", "00"], "'limit' can't be 'five'"),
        (["run", "--profile", "tiny", "-p", "profile", "workbench"], "profile is given twice"),
        (["run", "-p", "data", "/no/such/folder"], "data is '/no/such/folder', which is no folder"),
        (["run", "--output", "/dev/null"], "the output /dev/null is not a folder"),
        (["run", "00", "-p", "limit"], "-p limit has no value"),
        (["run", "--jobs", "0"], "Invalid value for '--jobs'"),
        (["run", "--timeout", "nan"], "Invalid value for '--timeout'"),
        (["results", "--workspace", "/dev/null/x", "--jsn"], "No such option: --jsn"),
        (["run", "--prof", "tiny"], "No such option: --prof"),
        (["fetch", "hub:a/b"], "1 places are given, and 2 wanted"),
        (["quantize", "fp9"], "'fp9'"),
        (["compare", "fp8-dynamic"], "Missing option '--store'"),
        (["pipeline", "run"], "run without --local"),
        (["serve", "here", "--", "--max-num-seqs", "4"], "'here' is no folder with a config.json"),
        (["serve", "here", "there"], "Got unexpected extra argument(s) (there)"),
        (["frobnicate"], "No such command 'frobnicate'"),
        # labs and options in any order: everything was understood, up to the value of the limit
        (["run", "00", "--jobs", "1", "01", "-p", "limit", "-3", "--profile", "tiny"], "limit is -3"),
        (["run", "-p", "model", "a=b", "-p", "limit", "-3", "00", "--profile=tiny", "01", "--jobs=1"], "limit is -3"),
        ([], "Missing command"),
    ],
)
def test_wrong_use_exits_with_2_and_a_message_before_anything_runs(
    course: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in course.iterdir()] == ["notebooks"]


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = f"""
import sys
from labkit.cli import main
assert main({words!r}) == 0
heavy = {{"torch", "transformers", "vllm", "papermill", "jinja2", "numpy", "psutil", "IPython"}} & set(sys.modules)
sys.exit(f"loaded {{heavy}}" if heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: labkit")
    assert words != ["--help"] or all(f"\n  {name} " in done.stdout for name in COMMANDS)


def test_results_show_the_newest_headlines_only(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results"]) == 0
    assert "`labkit run` makes them" in capsys.readouterr().out
    assert main(["results", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"variants": [], "headlines": []}
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
    (course / "elsewhere" / "ledger.jsonl").write_text("{half\n")
    assert main(["results", "--workspace", "elsewhere"]) == 1, "a damaged ledger is a failure, and no wrong use"
    assert "line 1 is no measurement" in capsys.readouterr().err


def test_labs_are_listed_with_what_they_need_and_make(course: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["labs"]) == 0
    assert capsys.readouterr().out.splitlines()[3].split("  ")[0] == "01_fp8_rtn"
    assert main(["labs", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed[1]["needs"], listed[1]["makes"]) == (["00_start_here"], ["fp8-dynamic"])


def test_results_may_be_piped_to_a_reader_that_stops(course: Path) -> None:
    lines = [Measurement("size", "bytes", i, f"v{i}", "tiny") for i in range(20_000)]
    Ledger(course / "workspace" / "ledger.jsonl").append(lines)
    words = ["bash", "-c", f"{' '.join(command('results'))} | head -1"]
    done = subprocess.run(words, cwd=course, env=clean_environment(), capture_output=True, text=True, check=False)
    assert done.stdout.startswith("model")
    assert done.stderr == ""
