"""A lab is bound to the same workspace from wherever it is started, and refuses what it does not know."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import labkit
from labkit.errors import MissingResult, UsageError
from labkit.files import publishing
from labkit.lab import Lab, open_lab
from labkit.profiles import TINY, WORKBENCH, Parameters, Profile
from labkit.store import Context, Workspace
from tests.conftest import ROOT, clean_environment
from tests.ops.probes import outputs

LAB_00 = ROOT / "notebooks" / "00_start_here.ipynb"
BOUND = """from pathlib import Path
from labkit.lab import Lab
from labkit.profiles import Parameters
from labkit.store import Context, Workspace
lab = Lab("03_evaluation", Context(Workspace(Path({folder!r}))), Parameters())
"""


def lab_in(folder: Path, profile: Profile = TINY, **parameters: str) -> Lab:
    context = Context(Workspace(folder), profile, parameters.get("data", ""), lab="03_evaluation")
    return Lab("03_evaluation", context, Parameters(**parameters))


def papermill(notebook: Path, cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The bare papermill command, as instructors have it in their fingers."""
    command = [sys.executable, "-m", "papermill", str(notebook), "out.ipynb", *arguments, "--no-progress-bar"]
    env = clean_environment(**environment)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_a_lab_finds_the_same_workspace_from_two_working_directories(tmp_path: Path) -> None:
    """Without a parameter the workspace is found from the notebooks' folder, which papermill does not make its own."""
    for folder in ("labkit", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    (tmp_path / "docs" / "deep").mkdir(parents=True)
    for cwd in (tmp_path / "notebooks", tmp_path / "docs" / "deep"):
        done = papermill(tmp_path / "notebooks" / LAB_00.name, cwd, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0, done.stderr[-2000:]
        assert f"workspace {tmp_path / 'workspace'}\n" in outputs(cwd / "out.ipynb")
    assert (tmp_path / "workspace" / "checkpoints" / "bf16" / "model.safetensors").exists()


def test_a_misspelt_parameter_stops_the_lab_before_anything_runs(tmp_path: Path) -> None:
    done = papermill(LAB_00, tmp_path, "-p", "worksapce", "x", LABKIT_WORKSPACE=str(tmp_path / "ws"))
    assert done.returncode == 1
    assert "this lab has no parameter worksapce" in done.stderr
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"profile": "tinny"}, "no profile 'tinny'"),
        ({"limit": "20"}, "limit is '20'"),
        ({"modle": "x"}, "knows no modle"),
    ],
)
def test_a_wrong_parameter_is_named(tmp_path: Path, parameters: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        open_lab("00_start_here", **({"workspace": str(tmp_path)} | parameters))


def test_empty_parameters_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORKSPACE": str(tmp_path / "ws"), "MODEL": "some/model", "DATA": "/theirs"}.items():
        monkeypatch.setenv(f"LABKIT_{name}", value)
    lab = open_lab("00_start_here", profile="", workspace="", model="", data="mine", limit=0)
    assert lab.workspace.root == tmp_path / "ws"
    assert (lab.model_source, lab.context.data) == ("some/model", "mine"), "what is given is kept"


def test_a_missing_input_names_the_lab_that_makes_it_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(MissingResult, match=r"labkit run 01_fp8_rtn"):
        lab_in(tmp_path).checkpoint("fp8-dynamic", made_by="01_fp8_rtn")


def test_another_model_s_checkpoint_is_not_taken_for_one_s_own_and_has_a_name_of_its_own(tmp_path: Path) -> None:
    with publishing(tmp_path / "checkpoints" / "fp8-dynamic", base="Qwen2.5-7B-Instruct", variant="fp8-dynamic"):
        pass
    lab = lab_in(tmp_path)
    with pytest.raises(MissingResult, match=r"made from Qwen2\.5-7B-Instruct, not from tiny"):
        lab.checkpoint("fp8-dynamic", made_by="01_fp8_rtn")
    assert lab.checkpoint("fp8-dynamic") == tmp_path / "checkpoints" / "fp8-dynamic"
    other = lab_in(tmp_path, model="Qwen/Qwen3-0.6B")
    assert other.checkpoint("fp8-dynamic") == tmp_path / "checkpoints" / "Qwen3-0.6B--fp8-dynamic"


def test_the_outliers_part_has_the_embedded_model_s_rows_on_every_profile(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    workbench = lab_in(tmp_path / "workspace", WORKBENCH, data=str(tmp_path / "data"))
    planted, tiny = workbench.with_outliers(2.0), lab_in(tmp_path / "tiny")
    assert planted.calibration_rows(4).input_ids == tiny.calibration_rows(4).input_ids


def ended(folder: Path, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`lab.end()` in a process of its own, as in a kernel: beside these tests other processes run."""
    command = [sys.executable, "-c", BOUND.format(folder=str(folder)) + before + "\nlab.end()"]
    return subprocess.run(command, env=clean_environment(**environment), capture_output=True, text=True, cwd=ROOT)


def test_the_end_frees_this_lab_s_scratch_alone_and_leaves_its_mark_where_the_runner_asks_for_it(
    tmp_path: Path,
) -> None:
    kept = [tmp_path / "cache" / "07_publish" / "back", tmp_path / "checkpoints" / "fp8-dynamic"]
    freed = lab_in(tmp_path).scratch("copy")
    for folder in [freed, *kept]:
        folder.mkdir(parents=True)
    alone = ended(tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert "End of 03_evaluation." in alone.stdout
    assert not freed.exists()
    assert all(folder.is_dir() for folder in kept)
    mark = tmp_path / "mark"
    assert ended(tmp_path, LABKIT_END_FILE=str(mark), LABKIT_END_TOKEN="a token").returncode == 0
    assert mark.read_text() == "a token"


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


VOCABULARY = """LabError Request behaviour card checkpoint errors explorers figures files hardware measured memory
numerics open_lab pipeline process publish serve simulation transfer zeroquant"""


def test_the_vocabulary_of_the_notebooks_is_pinned_and_importing_it_imports_nothing_heavy() -> None:
    assert labkit.__all__ == VOCABULARY.split()
    for name in labkit.__all__:
        assert getattr(labkit, name) is not None
    with pytest.raises(AttributeError, match="labkit has no 'quantum'"):
        labkit.quantum  # noqa: B018
    script = "import sys, labkit; print({'torch', 'transformers', 'vllm', 'numpy', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "set()"
