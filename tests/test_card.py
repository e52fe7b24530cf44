"""Model cards and the scorecard: every figure from the ledger or the checkpoint, and what is missing is said."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from labkit.card import CARD, gather, model_card, picture, scorecard, speedups
from labkit.cli import main
from labkit.errors import CheckpointError
from labkit.files import write_manifest
from labkit.ledger import Measurement
from labkit.publish import ready
from labkit.store import Workspace
from labkit.transfer import parse
from tests.conftest import LabsRun
from tests.models import make_model

MODEL = "small"
COPY = "bf16-copy"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def checkpoint(workspace: Workspace, variant: str = COPY, **facts: Any) -> Path:
    folder = make_model(workspace.checkpoint(variant, MODEL))
    write_manifest(folder, base=MODEL, variant=variant, **facts)
    return folder


@pytest.fixture
def both(workspace: Workspace) -> Workspace:
    """A workspace with a base model and a copy of it, as if that were a variant."""
    for variant in ("bf16", COPY):
        checkpoint(workspace, variant)
    return workspace


def line(kind: Any, metric: str, value: float, variant: str = COPY, day: int = 3, **more: Any) -> Measurement:
    time = f"2026-01-{day:02d}T00:00:00.000+00:00"
    return Measurement(kind, metric, value, variant, MODEL, machine="a machine", time=time, **more)


def scored(value: float, variant: str = COPY, day: int = 3, task: str = "gsm8k") -> Measurement:
    settings = {"limit": 250, "generation": {"temperature": 0.0}}
    more: dict[str, Any] = {"task": task, "stderr": 0.02, "n": 250, "unit": "share", "settings": settings}
    return line("accuracy", "exact_match", value, variant, day, **more)


# ---- the model card


def test_a_card_with_no_evidence_says_so(workspace: Workspace, tmp_path: Path) -> None:
    card = model_card(gather(make_model(tmp_path / "stranger"), workspace))
    for said in ("# stranger", "Not evaluated", "no record of how it was made", "**Not measured.**", "in 16 bits"):
        assert said in card
    assert not re.search(r"recover|quantized to", card)
    with pytest.raises(CheckpointError):
        gather(tmp_path, workspace)


def test_what_was_measured_stands_in_it_with_intervals_settings_and_machine(workspace: Workspace) -> None:
    facts = {"base_model": "owner/Small", "license": "mit", "recipe": "stage:\n  a: 1\n", "calibration": None}
    folder = checkpoint(workspace, gptq_fallbacks=["model.layers.1.mlp.down_proj"], **facts)
    speed = {"unit": "tok/s", "ci_low": 90.0, "ci_high": 110.0, "settings": {"concurrency": 8}}
    workspace.ledger.append(
        [
            line("quantize", "seconds", 12.5, day=2),
            line("quantize", "peak_bytes", 1234567.0, day=2),
            line("size", "bytes", 4_000_000.0, "bf16"),
            scored(0.8),
            scored(0.99, "bf16"),
            line("throughput", "output_tok_per_s", 100.0, **speed),
        ]
    )
    card = model_card(gather(folder, workspace), "s3://workshop/small")
    for said in (
        "owner/Small, in 16 bits",
        "stage:\n  a: 1",
        "No calibration data was used.",
        "took 12.5 s, with 1,234,567 bytes of memory at most, on a machine",
        # a share's interval ends at 1
        "| gsm8k | exact_match | 0.800 (0.761 to 0.839) | 0.990 (0.951 to 1.000) | not compared row by row | 250 |",
        "limit `250`, generation.temperature `0.0`",
        "| output_tok_per_s | 100.0 (90.0 to 110.0) tokens/s | concurrency `8` | a machine |",
        "labkit fetch s3://workshop/small small-bf16-copy",
        "of the base model's 4,000,000",
        "Scored on gsm8k only",
        "GPTQ gave up on 1 layers",
    ):
        assert said in card, said
    data = ModelCard(card).data
    assert (data.base_model, data.license, data.model_name) == ("owner/Small", "mit", "small-bf16-copy")
    assert data.eval_results is not None
    assert data.eval_results[0].metric_value == 0.8
    assert isinstance(yaml.safe_load(card.split("---")[1]), dict)


def test_measurements_of_an_older_checkpoint_of_the_same_name_are_left_out(both: Workspace) -> None:
    folder = both.checkpoint(COPY, MODEL)
    both.ledger.append([scored(0.5, day=1), line("quantize", "seconds", 1.0, day=2)])
    card = model_card(gather(folder, both))
    assert "0.500" not in card
    assert "1 older measurements are left out" in card
    assert scorecard(both)[1].accuracy is None
    both.ledger.append([scored(0.7, day=3)])
    assert "0.700" in model_card(gather(folder, both))
    assert scorecard(both)[1].accuracy == 0.7


def test_a_folder_is_made_ready_with_its_card_and_without_a_path_of_this_machine(
    workspace: Workspace, tmp_path: Path
) -> None:
    folder, out = checkpoint(workspace), parse(str(tmp_path / "out"))
    card = ready(folder, out, workspace).files[CARD].path
    assert workspace.root in card.parents
    assert str(tmp_path) not in card.read_text()
    assert CARD not in ready(folder, out, workspace, card=False).files
    stranger = make_model(tmp_path / "stranger")
    (stranger / CARD).write_text("theirs")
    assert ready(stranger, out, workspace).files[CARD].path == stranger / CARD


@pytest.mark.labs
def test_the_card_of_a_lab_holds_the_ledgers_figures(labs_run: LabsRun) -> None:
    evidence = gather(labs_run.workspace.checkpoint("int8-smoothquant-gptq"), labs_run.workspace)
    card = model_card(evidence)
    (accuracy,) = labs_run.ledger.headlines(variant="int8-smoothquant-gptq", task="tiny_problems", lab="03_evaluation")
    for said in (f"{accuracy.value:.3f} (", evidence.manifest["calibration"]["fingerprint"], "SmoothQuantModifier"):
        assert said in card
    verdicts = {score.measured.task: score.recovery and score.recovery.verdict for score in evidence.scores}
    assert verdicts.keys() == {"tiny_problems", "tiny_stories"}
    assert set(verdicts.values()) <= ({"recovered", "cannot tell"} if labs_run.limit else {"recovered"})
    assert ModelCard(card).data.license == "apache-2.0"


# ---- the scorecard


def test_a_row_has_the_ledgers_figures_and_a_dash_where_nothing_was_measured(both: Workspace) -> None:
    base, copy = scorecard(both)
    assert (base.variant, base.verdict) == ("bf16", "baseline")
    unmeasured = ("accuracy ± 95%", "n", "recovery", "verdict", "speed-up", "quantized in")
    assert [copy.cells()[name] for name in unmeasured] == ["–"] * 6
    assert picture([base, copy]) is None
    both.ledger.append(
        [
            line("quantize", "seconds", 12.5, day=2),
            scored(0.7, task="ifeval"),
            scored(0.8),
            scored(0.82, "bf16"),
            line("throughput", "output_tok_per_s", 1234.0),
            line("throughput", "speedup", 1.5),
        ]
    )
    _, copy = scorecard(both, "gsm8k")
    shown = replace(copy, bytes=1_500_000).cells().values()
    assert [*shown] == f"{MODEL}|{COPY}|1.5|16.00|0.800 ± 0.039|250|–|–|1,234|1.50×|12.5 s".split("|")
    assert scorecard(both)[1].task == "ifeval", "the first that was measured"
    drawn = picture(scorecard(both, "gsm8k"))
    assert drawn
    assert "Accuracy of small on gsm8k against bits per weight" in drawn.description


def test_speed_ups_are_the_model_s_own_or_those_of_the_model_that_stands_in_for_it(both: Workspace) -> None:
    assert speedups(scorecard(both), MODEL) == ({}, "")
    both.ledger.append([line("throughput", "speedup", 1.5), scored(0.8)])
    rows = scorecard(both)
    assert speedups(rows, MODEL) == speedups(rows, "another") == ({"bf16": 1.5}, MODEL)
    others = [*rows, *(replace(row, model="another", speedup=3.0) for row in rows)]
    assert speedups(others, MODEL) == ({"bf16": 1.5}, MODEL), "its own count first"
    stands_in = picture([*(replace(row, speedup=None) for row in rows), *others[2:]])
    assert stands_in
    assert "The numbers are speed-ups, measured on another." in stands_in.description


def test_the_command_prints_and_draws_it(both: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where, drawing = ["results", "--workspace", str(both.root)], tmp_path / "p.png"
    assert main([*where, "--picture", str(drawing)]) == 1
    assert "nothing was evaluated" in capsys.readouterr().err
    both.ledger.append([scored(0.8), scored(0.82, "bf16")])
    assert main([*where, "--picture", str(drawing)]) == 0
    assert drawing.read_bytes().startswith(b"\x89PNG")
    assert "0.800 ± 0.039" in capsys.readouterr().out
    assert main([*where, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in found["variants"]] == ["bf16", COPY]
    (both.checkpoint(COPY, MODEL) / "config.json").unlink()
    with pytest.raises(CheckpointError, match="small--bf16-copy"):
        scorecard(both)
    shutil.rmtree(both.checkpoints)
    assert main(where) == 0
    assert "exact_match" in capsys.readouterr().out, "without checkpoints the ledger's lines are left"


@pytest.mark.labs
def test_the_labs_variants_are_all_on_it(labs_run: LabsRun) -> None:
    rows = {(row.model, row.variant): row for row in scorecard(labs_run.workspace, "tiny_problems")}
    assert {folder.name for folder in labs_run.workspace.checkpoints.iterdir()} == {
        variant if model == "tiny" else f"{model}--{variant}" for model, variant in rows
    }
    good = rows["tiny", "int8-smoothquant-gptq"]
    assert good.verdict in ("recovered", *(["cannot tell"] if labs_run.limit else []))
    assert good.quantize_seconds
    assert 8 < good.bits_per_weight < 16
    assert rows["tiny", "int8-rtn"].verdict == "lost"
    assert any(row.speedup for row in rows.values())
    drawn = picture(list(rows.values()))
    assert drawn
    assert ("Smallest that recovered:" in drawn.description) or labs_run.limit
