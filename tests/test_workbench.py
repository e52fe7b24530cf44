"""What a workshop will run is what is run here: the labs by papermill, with other models and real data."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import pytest

from labkit.checkpoint import short_name
from labkit.ledger import Ledger, Measurement
from labkit.profiles import WORKBENCH
from labkit.simulation import paper_grid
from tests.conftest import ROOT, clean_environment
from tests.models import make_model

LABS = ("01_fp8_rtn", "02_int8_smoothquant_gptq", "03_evaluation")
SERVING = ("01_fp8_rtn", "04_serving_throughput", "05_static_fp8_kv_cache")
FP4 = ("06_fp4_weights_lorc",)
GRID = {scheme.variant for scheme in paper_grid()}
ROWS = 16


def run_labs(
    folder: Path,
    model: Path,
    data: Path | str,
    labs: Sequence[str] = LABS,
    profile: str = "workbench",
    rows: int = ROWS,
) -> tuple[str, Ledger]:
    """Executes labs by the papermill command, each shortened to `rows`: what their cells printed, and the ledger."""
    text = ""
    for lab in labs:
        command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / f"{lab}.ipynb"), f"{lab}.ipynb"]
        command += ["-p", "profile", profile, "-p", "workspace", str(folder / "workspace"), "-p", "model", str(model)]
        command += ["-p", "data", str(data), "-p", "limit", str(rows), "--no-progress-bar"]
        environment = clean_environment(HF_HUB_OFFLINE="1")
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{lab}: {done.stderr[-3000:]}"
        cells = nbformat.read(folder / f"{lab}.ipynb", as_version=4).cells
        text += "".join(output.text for cell in cells for output in cell.get("outputs", []) if "text" in output)
        assert f"End of {lab}." in text
    return text, Ledger(folder / "workspace" / "ledger.jsonl")


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    return make_model(tmp_path / "Small-Qwen2", "qwen2")


def short_runs_of(model: Path, ledger: Ledger, **asked: Any) -> list[Measurement]:
    return ledger.newest(model=short_name(str(model)), **asked)


@pytest.mark.parametrize(
    "labs", [LABS[1:2], pytest.param(LABS, marks=[pytest.mark.long, pytest.mark.timeout(1500)])], ids=["02", "01-03"]
)
def test_the_labs_that_quantize_and_evaluate_run_on_the_workbench_profile(
    labs: tuple[str, ...], tmp_path: Path, qwen: Path, shared_data: Path
) -> None:
    text, ledger = run_labs(tmp_path, qwen, shared_data, labs)
    assert "observed: int8-rtn against the baseline" in text  # an expectation is no demand on another model
    assert "profile workbench" in text
    variants = {"bf16", "int8-rtn", "int8-smoothquant-gptq"} | ({"fp8-dynamic"} if labs == LABS else set())
    found = {(m.variant, m.task): m for m in short_runs_of(qwen, ledger) if m.task}
    for task, shots in {"gsm8k": 5, "ifeval": 0, "wikitext": 0}.items() if labs == LABS else {"gsm8k": 5}.items():
        for variant in variants:
            m = found[variant, task]
            assert (m.n, m.settings["limit"], m.settings["num_fewshot"]) == (ROWS, ROWS, shots)
            assert "local" in m.settings["data"]
    checkpoints = {path.name for path in (tmp_path / "workspace" / "checkpoints").iterdir()}
    assert {f"Small-Qwen2--{variant}" for variant in variants - {"bf16"}} <= checkpoints


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_labs_04_and_05_run_on_the_workbench_profile(tmp_path: Path, qwen: Path, shared_data: Path) -> None:
    _, ledger = run_labs(tmp_path, qwen, shared_data, SERVING)
    loads = [m for m in ledger.read() if m.metric == "output_tok_per_s" and m.variant == "bf16"]
    assert {m.settings["concurrency"] for m in loads} == {max(c for c in WORKBENCH.serving.concurrencies if c <= ROWS)}
    assert {m.model for m in loads} == {short_name(str(qwen))}, "a workshop measures the speed of its own model"
    assert next(m.settings["num_fewshot"] for m in ledger.read() if m.variant == "e4m3, calibrated") == 8
    assert short_runs_of(qwen, ledger, variant="fp8-static", kind="accuracy", purpose="headline")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_lab_06_runs_on_the_workbench_profile_and_on_another_architecture(
    tmp_path: Path, qwen: Path, shared_data: Path
) -> None:
    text, ledger = run_labs(tmp_path, qwen, shared_data, FP4, rows=4)
    assert "c4 is left out" in text  # and ptb: of the three texts this data folder has one
    lines = short_runs_of(qwen, ledger, task="wikitext2")
    assert {m.n for m in lines} == {4}
    assert GRID | {"mxfp4", "nvfp4"} <= {m.variant for m in lines}
    opt = make_model(tmp_path / "Small-OPT", "opt", hidden=96)  # other layer names, biases, groups of 96
    text, ledger = run_labs(tmp_path, opt, "", FP4, profile="tiny", rows=8)
    assert "self_attn.q_proj: 96 columns in groups of 96" in text
    assert "observed: the perplexity with 2 bits" in text
    assert {m.variant for m in short_runs_of(opt, ledger, backend="simulated")} >= GRID


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("architecture", "how"),
    [
        *((name, {}) for name in ("qwen3", "granite", "mistral", "gemma")),
        ("llama", {"tied": True, "shard_size": "200KB"}),
    ],
)
def test_the_labs_run_on_other_architectures_and_on_shards_with_tied_embeddings(
    tmp_path: Path, shared_data: Path, architecture: Any, how: dict[str, Any]
) -> None:
    model = make_model(tmp_path / "Small-Model", architecture, **how)
    assert len(list(model.glob("*.safetensors"))) > 1 or not how
    text, _ = run_labs(tmp_path, model, shared_data)
    assert text.count("layers are int8-w8a8") >= 2
