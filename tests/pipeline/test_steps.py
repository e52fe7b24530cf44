"""The commands that the pipeline is made of, on a real bucket; and the pipeline with a step that dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from labkit.divergence import divergences
from labkit.manifest import read_manifest
from labkit.pipeline import run_here
from labkit.transfer import bundle, parse, send
from labkit.workspace import Workspace
from tests.conftest import ROOT, LabsRun, clean_environment
from tests.processes_left import MARKER, marked, wait_until
from tests.transfer.conftest import BUCKET, CANARY, Store, no_keys, s3_server, shared_s3, use_store

__all__ = ["no_keys", "s3_server", "shared_s3"]

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def labkit(tmp_path: Path) -> Run:
    """The command line, each time in a workspace of its own, as on a cluster."""
    numbers = iter(range(100))

    def run(*words: str, data_parallel: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "labkit.ops.cli", *words]
        environment = clean_environment(LABKIT_WORKSPACE=str(tmp_path / f"pod-{next(numbers)}"), PYTHONPATH=str(ROOT))
        environment["LABKIT_DATA_PARALLEL"] = data_parallel
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)

    return run


@pytest.mark.long
def test_three_machines_share_nothing_but_a_bucket(
    labkit: Run, shared_s3: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_store(monkeypatch, shared_s3)
    store, limit = ("--store", f"s3://{BUCKET}/quantized"), ("-p", "limit", "20")
    early = labkit("evaluate", "fp8-dynamic", *store, *limit)
    assert early.returncode == 1
    assert "labkit quantize fp8-dynamic" in early.stderr
    summary = tmp_path / "summary.json"
    made = labkit("quantize", "fp8-dynamic", *store, "--summary", str(summary))
    assert made.returncode == 0, made.stderr
    figures = json.loads(summary.read_text())
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
    send(bundle(other), parse(f"s3://{BUCKET}/quantized/checkpoints/tiny--fp8-dynamic"))
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


@pytest.mark.long
def test_two_processes_make_the_checkpoint_of_one(labkit: Run, tmp_path: Path) -> None:
    """Equal scales, and equal codes but for GPTQ's rounding: sums of other parts differ in the last bit."""
    import torch
    from safetensors.torch import load_file

    alone = labkit("quantize", "int8-smoothquant-gptq", "-p", "limit", "64")
    assert alone.returncode == 0, alone.stderr
    shared = labkit("quantize", "int8-smoothquant-gptq", "-p", "limit", "64", data_parallel="2")
    assert shared.returncode == 0, shared.stderr
    one, two = (tmp_path / f"pod-{n}" / "checkpoints" / "int8-smoothquant-gptq" for n in (0, 1))
    for fact in ("recipe", "calibration", "gptq_fallbacks"):
        assert read_manifest(one)[fact] == read_manifest(two)[fact]
    ours, theirs = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if tensor.dtype == torch.int8:
            assert (tensor != theirs[name]).float().mean() < 0.05, name
        else:
            assert torch.equal(tensor, theirs[name]), name
    base, rows = tmp_path / "pod-0" / "checkpoints" / "bf16", [list(range(1, 65))]
    lost = divergences(base, [one, two], rows, "cpu")
    assert lost[1] == pytest.approx(lost[0], rel=0.25)
    few = labkit("quantize", "int8-smoothquant-gptq", "-p", "limit", "1", data_parallel="2")
    assert few.returncode == 2
    assert "1 calibration rows to share" in few.stderr


def test_a_gap_is_not_skipped(labkit: Run, tmp_path: Path) -> None:
    done = labkit("compare", "fp8-dynamic", "--store", str(tmp_path / "store"))
    assert done.returncode == 1
    assert "evaluations/tiny--bf16 is not there" in done.stderr
    assert "labkit evaluate bf16" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("quantize", "int9"), "there is no recipe 'int9'"),
        (("quantize", "fp8-dynamic", "-p", "limt", "5"), "a step knows no parameter limt"),
        (("evaluate", "bf16", "-p", "limit", "few"), "limit is 'few'"),
        (("evaluate", "fp8-dynamic", "--store", "hub:me/it"), "one repository"),
        (("pipeline", "run"), "run without --local"),
        (("pipeline", "submit", "--endpoint", "https://x.example"), "submit without an endpoint or an image"),
        (("pipeline", "run", "--local", "pipeline.yaml"), "run reads no file"),
        (("pipeline", "run", "--local", "--model", "/a/m", "--model", "/b/m"), "two have the same short name"),
        (("pipeline", "run", "--local", "--scheme", "int9"), "there is no recipe 'int9'"),
    ],
)
def test_wrong_use_is_found_before_anything_runs(
    words: tuple[str, ...], said: str, labkit: Run, tmp_path: Path
) -> None:
    done = labkit(*words)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_a_checkpoint_an_evaluation_says_how_to_make_it(labkit: Run) -> None:
    done = labkit("evaluate", "fp8-dynamic")
    assert done.returncode == 1
    assert "labkit quantize fp8-dynamic" in done.stderr


def test_the_pipeline_turns_red_when_an_evaluation_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process of the first evaluation is killed, as the kernel kills one when memory is short."""
    marker = f"red-{os.getpid()}"
    monkeypatch.setenv(MARKER, marker)
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while not killed and not over.is_set():
            for child in psutil.Process(os.getpid()).children(recursive=True):
                try:
                    words = child.cmdline()
                except psutil.Error:
                    continue
                if words[1:4] == ["-m", "labkit.ops.cli", "evaluate"]:
                    child.kill()
                    killed.append(child.pid)
            time.sleep(0.1)

    threading.Thread(target=kill, daemon=True).start()
    workspace = Workspace(tmp_path / "workspace")
    try:
        done = run_here(["tiny"], ["fp8-dynamic"], profile="tiny", workspace=workspace, limit=20, tell=lambda _: None)
    finally:
        over.set()
    assert killed
    assert "evaluate" in done.failed
    assert "compare" not in {step.step for step in done.steps}
    assert done.comparison == ()
    assert wait_until(lambda: marked(marker) == [], seconds=10)


@pytest.mark.labs
def test_lab_08_ran_a_green_and_a_red_pipeline(labs_run: LabsRun) -> None:
    root = labs_run.workspace.root / "pipeline"
    assert not (root / "workspace" / "checkpoints").exists(), "the steps' own copies are in the store"
    green, red = sorted(path.parent for path in root.glob("runs/*/pipeline.log"))
    assert len(list(green.rglob("executor_output.json"))) == 2 * 3 + 2
    assert "Lost: recovery" in (red / "pipeline.log").read_text()
    rows = json.loads((root / "store" / "comparison" / "comparison.json").read_text())
    assert {(row["variant"], row["recovery"]["verdict"]) for row in rows if row["task"] == "tiny_problems"} == {
        ("int8-rtn", "lost")
    }
