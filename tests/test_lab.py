"""A lab is bound to the same workspace from wherever it is started, and refuses what it does not know."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import labkit
from labkit.errors import MissingResult, UsageError
from labkit.lab import Lab, open_lab
from labkit.lab.notebook import assigned_names
from labkit.profiles import TINY, WORKBENCH, Parameters
from labkit.workspace import Workspace, publishing
from tests.conftest import ROOT, clean_environment


def lab_in(folder: Path, **parameters: str) -> Lab:
    return Lab("03_evaluation", TINY, Workspace(folder), Parameters(**parameters))


def run_lab_00(cwd: Path, out: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The bare papermill command, as instructors have it in their fingers."""
    command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / "00_start_here.ipynb"), str(out), *arguments]
    env = clean_environment(**environment)
    return subprocess.run(
        [*command, "--no-progress-bar"], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def said(notebook: Path) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    return "".join(output.text for cell in cells for output in cell.get("outputs", []) if "text" in output)


@pytest.mark.long
def test_a_lab_finds_the_same_workspace_from_two_working_directories(tmp_path: Path) -> None:
    """Without a parameter the workspace is found from the notebooks' folder, which papermill does not make its own."""
    copy = tmp_path / "checkout"
    for folder in ("labkit", "notebooks"):
        shutil.copytree(ROOT / folder, copy / folder)
    notebook = copy / "notebooks" / "00_start_here.ipynb"
    elsewhere = copy / "docs" / "deep"
    elsewhere.mkdir(parents=True)
    for cwd in (copy / "notebooks", elsewhere):
        out = cwd / "out.ipynb"
        command = [sys.executable, "-m", "papermill", str(notebook), str(out), "--no-progress-bar"]
        env = clean_environment(PYTHONPATH=str(copy))
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        assert f"workspace {copy / 'workspace'}\n" in said(out)
    assert (copy / "workspace" / "checkpoints" / "bf16" / "model.safetensors").exists()


def test_a_misspelt_parameter_stops_the_lab_before_anything_runs(tmp_path: Path) -> None:
    done = run_lab_00(tmp_path, tmp_path / "out.ipynb", "-p", "worksapce", "x", LABKIT_WORKSPACE=str(tmp_path / "ws"))
    assert done.returncode == 1
    assert "this lab has no parameter worksapce" in done.stderr
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"profile": "tinny"}, "no profile 'tinny'"),
        ({"limit": "20"}, "limit is '20'"),
        ({"limit": -1}, "limit is -1"),
        ({"limit": True}, "limit is True"),
        ({"model": 7}, "model is 7"),
        ({"modle": "x"}, "knows no modle"),
    ],
)
def test_a_wrong_parameter_is_named(tmp_path: Path, parameters: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        open_lab("00_start_here", **({"workspace": str(tmp_path)} | parameters))


def test_empty_parameters_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_WORKSPACE", str(tmp_path / "ws"))
    monkeypatch.setenv("LABKIT_MODEL", "some/model")
    lab = open_lab("00_start_here", profile="", workspace="", model="", data="", limit=0)
    assert lab.workspace.root == tmp_path / "ws"
    assert lab.model_source == "some/model"
    assert not lab.embedded


def test_a_missing_input_names_the_lab_that_makes_it_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingResult, match=r"labkit run 01_fp8_rtn"):
        lab_in(tmp_path).need("fp8-dynamic", made_by="01_fp8_rtn")


def test_another_model_s_checkpoint_is_not_taken_for_one_s_own(tmp_path: Path) -> None:
    with publishing(tmp_path / "checkpoints" / "fp8-dynamic", base="Qwen2.5-7B-Instruct", variant="fp8-dynamic"):
        pass
    with pytest.raises(MissingResult, match=r"made from Qwen2\.5-7B-Instruct, not from tiny"):
        lab_in(tmp_path).need("fp8-dynamic", made_by="01_fp8_rtn")


def test_another_model_s_variants_have_names_of_their_own(tmp_path: Path) -> None:
    assert lab_in(tmp_path).checkpoint("fp8-dynamic") == tmp_path / "checkpoints" / "fp8-dynamic"
    other = lab_in(tmp_path, model="Qwen/Qwen3-0.6B")
    assert other.checkpoint("fp8-dynamic") == tmp_path / "checkpoints" / "Qwen3-0.6B--fp8-dynamic"


def test_the_outliers_part_has_the_embedded_model_s_rows_on_every_profile(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    lab = Lab("05", WORKBENCH, Workspace(tmp_path / "workspace"), Parameters(data=str(tmp_path / "data")))
    planted, tiny = lab.with_outliers(2.0), lab_in(tmp_path / "tiny")
    assert planted.calibration_rows(4).input_ids == tiny.calibration_rows(4).input_ids


def ended(folder: Path, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`lab.end()` in a process of its own, as in a kernel: beside these tests other processes run."""
    code = f"""from pathlib import Path
from labkit.lab import Lab
from labkit.profiles import TINY, Parameters
from labkit.workspace import Workspace
{before}
Lab("03_evaluation", TINY, Workspace(Path({str(folder)!r})), Parameters()).end()"""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=clean_environment(**environment), capture_output=True, text=True, cwd=ROOT)


def test_the_end_mark_is_written_only_where_the_runner_asks_for_it(tmp_path: Path) -> None:
    alone = ended(tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert "End of 03_evaluation." in alone.stdout
    mark = tmp_path / "mark"
    assert ended(tmp_path, LABKIT_END_FILE=str(mark), LABKIT_END_TOKEN="a token").returncode == 0
    assert mark.read_text() == "a token"


def test_the_end_frees_the_scratch_of_this_lab_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / "cache" / "07_publish" / "back", tmp_path / "checkpoints" / "fp8-dynamic"]
    freed = lab_in(tmp_path).scratch("copy")
    for folder in [freed, *kept]:
        folder.mkdir(parents=True)
    assert ended(tmp_path).returncode == 0
    assert not freed.exists()
    assert all(folder.is_dir() for folder in kept)


def test_a_lab_that_leaves_a_process_running_does_not_end_well(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    left = "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)"
    done = ended(tmp_path, left, LABKIT_END_FILE=str(mark), LABKIT_END_TOKEN="a token")
    assert done.returncode == 1
    assert "1 processes of this lab still run" in done.stderr
    assert not mark.exists()


def test_a_guess_stands_beside_the_measurement_and_in_the_ledger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = lab_in(tmp_path)
    lab.predict("points lost", 0.5, "How many?")
    lab.outcome("points lost", 0.25)
    lab.outcome("points won", 1.0)
    out = capsys.readouterr().out
    assert "points lost: measured 0.25; you guessed 0.5." in out
    assert "points won: measured 1; you made no guess." in out
    (kept,) = lab.workspace.ledger.newest(kind="prediction")
    assert (kept.metric, kept.value, kept.settings) == ("points lost", 0.5, {"measured": 0.25})
    lab.predict("a bound", 256, "Where?")
    lab.outcome("a bound", float("inf"), "{:.0f}")
    assert lab.workspace.ledger.newest(metric="a bound")[0].settings == {"measured": "inf"}


def test_a_skipped_part_reaches_the_runner_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skips = tmp_path / "skips.jsonl"
    monkeypatch.setenv("LABKIT_SKIPS_FILE", str(skips))
    lab_in(tmp_path).skip("serving FP8", 'the "static" operator is missing')
    assert skips.read_text() == '{"part": "serving FP8", "reason": "the \\"static\\" operator is missing"}\n'


def test_assigned_names_reads_papermill_s_cell() -> None:
    assert assigned_names('# Parameters\nprofile = "tiny"\nlimit = 3\n') == {"profile", "limit"}


def test_the_vocabulary_of_the_notebooks_is_pinned() -> None:
    assert labkit.__all__ == [
        "LabError",
        "Request",
        "activations",
        "card",
        "checkpoint",
        "checks",
        "compare_evaluations",
        "evaluation",
        "explorers",
        "figures",
        "hardware",
        "memory",
        "numerics",
        "open_lab",
        "pipeline",
        "publish",
        "serving",
        "simulation",
        "tiny",
        "transfer",
        "zeroquant",
    ]
    for name in labkit.__all__:
        assert getattr(labkit, name) is not None
    with pytest.raises(AttributeError, match="labkit has no 'quantum'"):
        labkit.quantum  # noqa: B018


def test_importing_labkit_imports_nothing_heavy() -> None:
    script = (
        "import sys, labkit; print(sorted({'torch', 'transformers', 'vllm', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
