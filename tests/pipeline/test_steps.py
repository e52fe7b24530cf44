"""The recipes; the commands that the pipeline is made of, on a real bucket; and the pipeline with a step that dies."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from labkit.files import read_manifest
from labkit.pipeline import RECIPES, recipe_of, run_here
from labkit.profiles import TINY
from labkit.store import Workspace
from labkit.transfer import bundle, parse, upload
from tests.conftest import ROOT, LabsRun, clean_environment
from tests.processes_left import MARKER, marked, wait_until
from tests.transfer.conftest import BUCKET, CANARY, Store, no_keys, shared_s3, use_store
from tests.transfer.conftest import labkit as command_line

__all__ = ["no_keys", "shared_s3"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def labkit(tmp_path: Path) -> Run:
    """The command line, each time in a workspace of its own, as on a cluster."""
    numbers = iter(range(100))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        where = {"LABKIT_WORKSPACE": str(tmp_path / f"pod-{next(numbers)}"), "PYTHONPATH": str(ROOT)}
        return command_line(*words, env=clean_environment(**where), cwd=tmp_path)

    return run


@pytest.mark.labs
@pytest.mark.parametrize("variant", sorted(RECIPES.keys() - {"w4a16-gptq"}))
def test_a_recipe_is_the_one_that_the_lab_shows(variant: str, labs_run: LabsRun) -> None:
    from llmcompressor.recipe import Recipe

    recipe = recipe_of(variant)
    made = read_manifest(labs_run.workspace.checkpoint(variant))
    ours, theirs = (
        yaml.full_load(text)["default_stage"]["default_modifiers"]  # with Python's tuples in it
        for text in (Recipe.from_modifiers(recipe.modifiers(TINY)).yaml(), made["recipe"])
    )
    for found in ("mappings", "ignore"):  # SmoothQuant notes what it found in the model
        theirs.get("SmoothQuantModifier", {}).pop(found, None)
    assert ours == theirs
    calibration = made["calibration"]
    assert bool(calibration) == bool(recipe.rows_of(TINY))
    if calibration and variant != "int8-gptq":  # lab 02 makes it from a few rows only
        assert calibration["rows"] == labs_run.rows(recipe.rows_of(TINY))


@pytest.mark.long
def test_three_machines_share_nothing_but_a_bucket(
    labkit: Run, shared_s3: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_store(monkeypatch, shared_s3)
    store, limit = ("--store", f"s3://{BUCKET}/quantized"), ("-p", "limit", "20")
    early = labkit("evaluate", "fp8-dynamic", *store, *limit)
    assert early.returncode == 1
    assert "labkit quantize fp8-dynamic" in early.stderr
    made = labkit("quantize", "fp8-dynamic", *store, "--summary", str(tmp_path / "summary.json"))
    assert made.returncode == 0, made.stderr
    figures = json.loads((tmp_path / "summary.json").read_text())
    assert figures["step"] == "quantize"
    assert 0 < figures["work_seconds"] < figures["seconds"]
    for variant in ("bf16", "fp8-dynamic"):
        done = labkit("evaluate", variant, *store, *limit)
        assert done.returncode == 0, done.stderr
    judged = labkit("compare", "fp8-dynamic", *store, "--report", str(tmp_path / "report.md"))
    assert judged.returncode == 1, "20 rows can't tell"
    assert "Cannot tell with 20 samples" in judged.stderr
    assert "| tiny | fp8-dynamic | tiny_problems |" in (tmp_path / "report.md").read_text()
    again = labkit("quantize", "fp8-dynamic", *store)  # the same recipe: the same bytes, and so the scores still count
    assert again.returncode == 0, again.stderr
    assert "Cannot tell" in labkit("compare", "fp8-dynamic", *store).stderr
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    upload(bundle(other), parse(f"s3://{BUCKET}/quantized/checkpoints/tiny--fp8-dynamic"))
    assert "is of another checkpoint" in labkit("compare", "fp8-dynamic", *store).stderr
    said = "".join(path.read_text(errors="replace") for path in tmp_path.rglob("*.log"))
    assert CANARY not in said + judged.stdout + judged.stderr


@pytest.mark.long
def test_the_command_runs_the_pipeline_here(labkit: Run) -> None:
    done = labkit("pipeline", "run", "--local")
    assert done.returncode == 0, done.stderr
    for variant in ("fp8-dynamic", "int8-smoothquant-gptq"):
        assert f"{variant} of tiny, tiny_problems: Recovered" in done.stdout
    scored = [line.split() for line in done.stdout.splitlines() if line.startswith("evaluate  ")]
    assert [row[:3] for row in scored] == [
        ["evaluate", "tiny", variant] for variant in ("bf16", "fp8-dynamic", "int8-smoothquant-gptq")
    ]
    for seconds, *parts in (map(float, row[3:]) for row in scored):
        assert all(part > 0 for part in parts)
        assert sum(parts) == pytest.approx(seconds, abs=0.2)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("compare fp8-dynamic --store empty", 1, r"evaluations/tiny--bf16 is not there.*labkit evaluate bf16"),
        ("evaluate fp8-dynamic", 1, r"checkpoints/fp8-dynamic is not there.*labkit quantize fp8-dynamic"),
        ("quantize int9", 2, "there is no recipe 'int9'.*int8-smoothquant-gptq"),
        ("quantize fp8-dynamic -p limt 5", 2, "a step knows no parameter limt"),
        ("evaluate bf16 -p limit few", 2, "'limit' can't be 'few'"),
        ("evaluate fp8-dynamic --store hub:me/it", 2, "one repository"),
        ("pipeline run", 2, "run without --local"),
        ("pipeline submit --endpoint https://x.example", 2, "submit without an endpoint or an image"),
        ("pipeline run --local pipeline.yaml", 2, "run reads no file"),
        ("pipeline run --local --model /a/m --model /b/m", 2, "two have the same short name"),
        ("pipeline run --local --scheme int9", 2, "there is no recipe 'int9'"),
    ],
)
def test_a_gap_is_not_skipped_and_wrong_use_is_found_before_anything_runs(
    words: str, code: int, said: str, labkit: Run, tmp_path: Path
) -> None:
    done = labkit(*words.split())
    assert done.returncode == code, done.stderr
    assert re.search(said, done.stderr, re.DOTALL)
    if code == 2:
        assert list(tmp_path.iterdir()) == []


def test_the_pipeline_turns_red_when_an_evaluation_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the first evaluation is killed, as the kernel kills one when memory is short."""
    marker = f"red-{os.getpid()}"
    monkeypatch.setenv(MARKER, marker)
    killed, over = threading.Event(), threading.Event()

    def kill() -> None:
        while not killed.is_set() and not over.wait(0.1):
            for child in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):  # it ended while we looked
                    if child.cmdline()[1:4] == ["-m", "labkit.cli", "evaluate"]:
                        child.kill()
                        killed.set()

    threading.Thread(target=kill, daemon=True).start()
    workspace = Workspace(tmp_path / "workspace")
    try:
        done = run_here(["tiny"], ["fp8-dynamic"], profile="tiny", workspace=workspace, limit=20, tell=lambda _: None)
    finally:
        over.set()
    assert killed.is_set()
    assert "evaluate" in done.failed
    assert "compare" not in {step.step for step in done.steps}
    assert done.comparison == ()
    assert wait_until(lambda: marked(marker) == [], seconds=10)


@pytest.mark.labs
def test_lab_08_ran_a_green_and_a_red_pipeline(labs_run: LabsRun) -> None:
    root = labs_run.workspace.root / "pipeline"
    assert not (root / "workspace" / "checkpoints").exists(), "the steps' own copies are in the store"
    green, red = sorted(path.parent for path in root.glob("runs/*/pipeline.log"))
    ended_well = 2 * 3 + 2 - bool(labs_run.limit)  # from few rows the comparison can't tell, and fails
    assert len(list(green.rglob("executor_output.json"))) == ended_well
    assert "Lost: recovery" in (red / "pipeline.log").read_text()
    rows = json.loads((root / "store" / "comparison" / "comparison.json").read_text())
    assert {(row["variant"], row["recovery"]["verdict"]) for row in rows if row["task"] == "tiny_problems"} == {
        ("int8-rtn", "lost")
    }
