"""The model card: every figure from the ledger or the checkpoint, and what is missing is said."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from labkit.card import CARD, gather, model_card
from labkit.errors import CheckpointError
from labkit.ledger import Measurement
from labkit.manifest import write_manifest
from labkit.publish import card_path, ready
from labkit.transfer import parse
from labkit.workspace import Workspace
from tests.conftest import LabsRun
from tests.models import make_model


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def checkpoint(workspace: Workspace, **facts: Any) -> Path:
    folder = make_model(workspace.checkpoint("bf16-copy", "small"))
    write_manifest(folder, base="small", variant="bf16-copy", **facts)
    return folder


def line(kind: Any, metric: str, value: float, variant: str = "bf16-copy", day: int = 3, **more: Any) -> Measurement:
    time = f"2026-01-{day:02d}T00:00:00.000+00:00"
    return Measurement(kind, metric, value, variant, "small", machine="a machine", time=time, **more)


def scored(value: float, variant: str = "bf16-copy", day: int = 3) -> Measurement:
    settings = {"limit": 250, "generation": {"temperature": 0.0}}
    more: dict[str, Any] = {"task": "gsm8k", "stderr": 0.02, "n": 250, "unit": "share", "settings": settings}
    return line("accuracy", "exact_match", value, variant, day, **more)


def test_a_card_with_no_evidence_says_so(workspace: Workspace, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "stranger")
    card = model_card(gather(folder, workspace))
    for said in ("# stranger", "Not evaluated", "no record of how it was made", "**Not measured.**", "in 16 bits"):
        assert said in card
    assert not re.search(r"recover|quantized to", card)


def test_what_was_measured_stands_in_it_with_intervals_settings_and_machine(workspace: Workspace) -> None:
    folder = checkpoint(workspace, base_model="owner/Small", license="mit", recipe="stage:\n  a: 1\n", calibration=None)
    speed = {"unit": "tok/s", "ci_low": 90.0, "ci_high": 110.0, "settings": {"concurrency": 8}}
    workspace.ledger.append(
        [
            line("quantize", "seconds", 12.5, day=2),
            line("quantize", "peak_bytes", 1234567.0, day=2),
            line("size", "bytes", 4_000_000.0, "bf16"),
            scored(0.8),
            scored(0.82, "bf16"),
            line("throughput", "output_tok_per_s", 100.0, **speed),
        ]
    )
    card = model_card(gather(folder, workspace), "s3://workshop/small")
    for said in (
        "owner/Small, in 16 bits",
        "stage:\n  a: 1",
        "took 12.5 s, with 1,234,567 bytes of memory at most, on a machine",
        "| gsm8k | exact_match | 0.800 (0.761 to 0.839) | 0.820 (0.781 to 0.859) | not compared row by row | 250 |",
        "limit `250`, generation.temperature `0.0`",
        "| output_tok_per_s | 100.0 (90.0 to 110.0) tokens/s | concurrency `8` | a machine |",
        "labkit fetch s3://workshop/small small-bf16-copy",
        "of the base model's 4,000,000",
        "Scored on gsm8k only",
    ):
        assert said in card, said
    data = ModelCard(card).data
    assert (data.base_model, data.license, data.model_name) == ("owner/Small", "mit", "small-bf16-copy")
    assert data.eval_results is not None
    assert data.eval_results[0].metric_value == 0.8
    assert isinstance(yaml.safe_load(card.split("---")[1]), dict)


def test_measurements_of_an_older_checkpoint_of_the_same_name_are_left_out(workspace: Workspace) -> None:
    folder = checkpoint(workspace)
    workspace.ledger.append([scored(0.5, day=1), line("quantize", "seconds", 1.0, day=2)])
    card = model_card(gather(folder, workspace))
    assert "0.500" not in card
    assert "1 older measurements are left out" in card
    workspace.ledger.append([scored(0.7, day=3)])
    assert "0.700" in model_card(gather(folder, workspace))


def test_a_score_of_a_perfect_model_has_an_interval_within_its_scale(workspace: Workspace) -> None:
    folder = checkpoint(workspace)
    workspace.ledger.append([scored(0.99)])
    assert "0.990 (0.951 to 1.000)" in model_card(gather(folder, workspace))


def test_gptq_that_fell_back_is_a_limit(workspace: Workspace) -> None:
    folder = checkpoint(workspace, gptq_fallbacks=["model.layers.1.mlp.down_proj"])
    assert "GPTQ gave up on 1 layers" in model_card(gather(folder, workspace))


def test_a_folder_is_made_ready_with_its_card_and_without_a_path_of_this_machine(
    workspace: Workspace, tmp_path: Path
) -> None:
    folder = checkpoint(workspace)
    ours = ready(folder, parse(str(tmp_path / "out")), workspace)
    assert ours.files[CARD].path == card_path(folder, workspace)
    assert str(tmp_path) not in card_path(folder, workspace).read_text()
    assert CARD not in ready(folder, parse(str(tmp_path / "out")), workspace, card=False).files
    stranger = make_model(tmp_path / "stranger")
    (stranger / CARD).write_text("theirs")
    assert ready(stranger, parse(str(tmp_path / "out")), workspace).files[CARD].path == stranger / CARD


def test_what_is_no_checkpoint_has_no_card(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        gather(tmp_path, workspace)


@pytest.mark.labs
def test_the_card_of_a_lab_holds_the_ledgers_figures(labs_run: LabsRun) -> None:
    folder = labs_run.workspace.checkpoint("int8-smoothquant-gptq")
    evidence = gather(folder, labs_run.workspace)
    card = model_card(evidence)
    (accuracy,) = labs_run.ledger.headlines(variant="int8-smoothquant-gptq", task="tiny_problems", lab="03_evaluation")
    assert f"{accuracy.value:.3f} (" in card
    assert {score.measured.task for score in evidence.scores} == {"tiny_problems", "tiny_stories"}
    assert all(score.recovery and score.recovery.verdict == "recovered" for score in evidence.scores)
    assert evidence.manifest["calibration"]["fingerprint"] in card
    assert "SmoothQuantModifier" in card
    assert ModelCard(card).data.license == "apache-2.0"
