"""The scorecard: one row a variant, nothing that was not measured, nothing that is older than the checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from labkit.errors import CheckpointError
from labkit.ledger import Measurement
from labkit.manifest import write_manifest
from labkit.ops.cli import main
from labkit.scorecard import cells, picture, scorecard, speedups
from labkit.workspace import Workspace
from tests.conftest import LabsRun
from tests.models import make_model

MODEL = "small"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A base model and a copy of it, as if that were a variant."""
    found = Workspace(tmp_path / "workspace")
    for variant in ("bf16", "copy"):
        write_manifest(make_model(found.checkpoint(variant, MODEL)), base=MODEL, variant=variant)
    return found


def line(kind: Any, metric: str, value: float, variant: str, day: int = 3, **more: Any) -> Measurement:
    return Measurement(kind, metric, value, variant, MODEL, time=f"2026-01-{day:02d}T00:00:00.000+00:00", **more)


def score(value: float, variant: str, task: str = "gsm8k", day: int = 3) -> Measurement:
    return line("accuracy", "exact_match", value, variant, day, task=task, stderr=0.01, n=250, unit="share")


def test_what_was_not_measured_is_a_dash(workspace: Workspace) -> None:
    base, copy = scorecard(workspace)
    assert (base.variant, base.verdict) == ("bf16", "baseline")
    assert copy.bits_per_weight == pytest.approx(16.0, abs=0.01)
    shown = cells(copy)
    assert [shown[name] for name in ("accuracy ± 95%", "n", "recovery", "verdict", "speed-up", "quantized in")] == [
        "–"
    ] * 6
    assert picture([base, copy]) is None


def test_parameters_are_counted_as_transformers_counts_them(workspace: Workspace) -> None:
    folder = workspace.checkpoint("bf16", MODEL)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    base, _ = scorecard(workspace)
    assert round(8 * base.bytes / base.bits_per_weight) == sum(p.numel() for p in model.parameters())


def test_a_row_has_the_ledgers_figures_of_the_task_that_was_asked_for(workspace: Workspace) -> None:
    workspace.ledger.append(
        [
            line("quantize", "seconds", 12.5, "copy", day=2),
            score(0.7, "copy", "ifeval"),
            score(0.8, "copy"),
            score(0.82, "bf16"),
            line("throughput", "output_tok_per_s", 1234.0, "copy"),
            line("throughput", "speedup", 1.5, "copy"),
        ]
    )
    _, copy = scorecard(workspace, "gsm8k")
    assert cells(copy) | {"MB": "", "bits per weight": ""} == {
        "model": MODEL,
        "variant": "copy",
        "MB": "",
        "bits per weight": "",
        "accuracy ± 95%": "0.800 ± 0.020",
        "n": "250",
        "recovery": "–",
        "verdict": "–",
        "output tok/s": "1,234",
        "speed-up": "1.50×",
        "quantized in": "12.5 s",
    }
    assert scorecard(workspace)[1].task == "ifeval", "the first that was measured"
    drawn = picture(scorecard(workspace, "gsm8k"))
    assert drawn
    assert "Accuracy of small on gsm8k against bits per weight" in drawn.description


def test_speed_ups_are_the_model_s_own_or_those_of_the_model_that_stands_in_for_it(workspace: Workspace) -> None:
    assert speedups(scorecard(workspace), MODEL) == ({}, "")
    workspace.ledger.append([line("throughput", "speedup", 1.5, "copy"), score(0.8, "copy")])
    rows = scorecard(workspace)
    assert speedups(rows, MODEL) == ({"bf16": 1.5}, MODEL)
    assert speedups(rows, "another") == ({"bf16": 1.5}, MODEL)
    others = [*rows, *(replace(row, model="another", speedup=3.0) for row in rows)]
    assert speedups(others, MODEL) == ({"bf16": 1.5}, MODEL), "its own count first"
    stands_in = picture([*(replace(row, speedup=None) for row in rows), *others[2:]])
    assert stands_in
    assert "The numbers are speed-ups, measured on another." in stands_in.description


def test_a_score_of_an_older_checkpoint_does_not_count(workspace: Workspace) -> None:
    workspace.ledger.append([score(0.8, "copy", day=1), line("quantize", "seconds", 1.0, "copy", day=2)])
    assert scorecard(workspace)[1].accuracy is None


def test_a_folder_that_is_no_checkpoint_any_more_is_named(workspace: Workspace) -> None:
    (workspace.checkpoint("copy", MODEL) / "config.json").unlink()
    with pytest.raises(CheckpointError, match="small--copy"):
        scorecard(workspace)


def test_the_command_prints_it_and_draws_it(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["results", "--workspace", str(workspace.root)]
    assert main([*where, "--picture", str(tmp_path / "p.png")]) == 1
    assert "nothing was evaluated" in capsys.readouterr().err
    workspace.ledger.append([score(0.8, "copy"), score(0.82, "bf16")])
    assert main([*where, "--picture", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert "0.800 ± 0.020" in capsys.readouterr().out
    assert main([*where, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in found["variants"]] == ["bf16", "copy"]
    shutil.rmtree(workspace.checkpoints)
    assert main(where) == 0
    assert "exact_match" in capsys.readouterr().out, "without checkpoints the ledger's lines are left"


@pytest.mark.labs
def test_the_labs_variants_are_all_on_it(labs_run: LabsRun) -> None:
    rows = {(row.model, row.variant): row for row in scorecard(labs_run.workspace, "tiny_problems")}
    assert {folder.name for folder in labs_run.workspace.checkpoints.iterdir()} == {
        variant if model == "tiny" else f"{model}--{variant}" for model, variant in rows
    }
    good = rows["tiny", "int8-smoothquant-gptq"]
    assert good.verdict == "recovered"
    assert good.quantize_seconds
    assert 8 < good.bits_per_weight < 16
    assert rows["tiny", "int8-rtn"].verdict == "lost"
    assert any(row.speedup for row in rows.values()) == any(lab.alone for lab in labs_run.labs)
    drawn = picture(list(rows.values()))
    assert drawn
    assert "Smallest that recovered:" in drawn.description
