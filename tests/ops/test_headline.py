"""The main figures of a run do not depend on which lab ended first."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

from labkit.ledger import Ledger, Measurement
from labkit.ops.headline import run_headlines, scores
from labkit.profiles import TINY

TASK = TINY.main_task.name


def line(lab: str, variant: str, backend: str, value: float) -> Measurement:
    return Measurement(
        "accuracy", "exact_match", value, variant, "tiny", task=TASK, backend=backend, n=500, lab=lab, run="this"
    )


LINES = (
    line("03_evaluation", "bf16", "vllm", 0.9),
    line("03_evaluation", "fp8-dynamic", "vllm", 0.8),
    line("05_static_fp8_kv_cache", "fp8-static", "hf", 0.7),
)


def test_scores_are_those_of_the_first_labs_backend_in_whatever_order_they_came(tmp_path: Path) -> None:
    for number, lines in enumerate(permutations(LINES)):
        ledger = Ledger(tmp_path / f"{number}.jsonl")
        ledger.append(lines)
        found = scores(run_headlines(ledger, "this"), TINY)
        assert {variant: score.value for variant, score in found.items()} == {"bf16": 0.9, "fp8-dynamic": 0.8}


def test_an_unchanged_labs_figures_stand_where_its_own_would(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(LINES)
    assert run_headlines(ledger, "later", {line.lab: "this" for line in reversed(LINES)}) == list(LINES)
