"""What a workshop will run is what is run here: the labs by papermill, with other models and real data."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pytest

from labkit.checkpoint import short_name
from labkit.ledger import Ledger
from labkit.profiles import WORKBENCH
from labkit.simulation import paper_grid
from tests.conftest import ROOT, clean_environment
from tests.models import Architecture, make_model

LABS = ("01_fp8_rtn", "02_int8_smoothquant_gptq", "03_evaluation")
SERVING = ("01_fp8_rtn", "04_serving_throughput", "05_static_fp8_kv_cache")
FP4 = "06_fp4_weights_lorc"
ROWS = 20


def run_labs(
    model: Path,
    data: Path | str,
    workspace: Path,
    out: Path,
    labs: Sequence[str] = LABS,
    *,
    profile: str = "workbench",
    rows: int = ROWS,
) -> str:
    """Executes labs by the papermill command, each shortened to `rows`; returns what their cells printed."""
    out.mkdir()
    text = ""
    for lab in labs:
        executed = out / f"{lab}.ipynb"
        command = [sys.executable, "-m", "papermill", str(ROOT / "notebooks" / f"{lab}.ipynb"), str(executed)]
        command += ["-p", "profile", profile, "-p", "workspace", str(workspace), "-p", "model", str(model)]
        command += ["-p", "data", str(data), "-p", "limit", str(rows), "--no-progress-bar"]
        environment = clean_environment(HF_HUB_OFFLINE="1")
        done = subprocess.run(command, env=environment, cwd=out, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{lab}: {done.stderr[-3000:]}"
        cells = nbformat.read(executed, as_version=4).cells
        text += "".join(output.text for cell in cells for output in cell.get("outputs", []) if "text" in output)
    return text


@pytest.mark.timeout(900)
def test_lab_02_runs_on_the_workbench_profile(tmp_path: Path, shared_data: Path) -> None:
    model, rows = make_model(tmp_path / "Small-Qwen2", "qwen2"), 8
    text = run_labs(model, shared_data, tmp_path / "workspace", tmp_path / "out", LABS[1:2], rows=rows)
    assert f"End of {LABS[1]}." in text
    assert "observed: int8-rtn against the baseline" in text  # an expectation is no demand on another model
    assert "profile workbench" in text
    scored = Ledger(tmp_path / "workspace" / "ledger.jsonl").newest(model=short_name(str(model)), kind="accuracy")
    assert {(m.variant, m.task, m.n) for m in scored} >= {
        (variant, "gsm8k", rows) for variant in ("bf16", "int8-rtn", "int8-smoothquant-gptq")
    }
    assert all("local" in m.settings["data"] for m in scored)


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_labs_01_to_03_run_on_the_workbench_profile(tmp_path: Path, shared_data: Path) -> None:
    model = make_model(tmp_path / "Small-Qwen2", "qwen2")
    text = run_labs(model, shared_data, tmp_path / "workspace", tmp_path / "out")
    for lab in LABS:
        assert f"End of {lab}." in text
    assert "observed: int8-rtn against the baseline" in text  # an expectation is no demand on another model
    assert "profile workbench" in text

    ledger = Ledger(tmp_path / "workspace" / "ledger.jsonl")
    scored = {(m.variant, m.task): m for m in ledger.headlines(model=short_name(str(model))) if m.task}
    variants = {"bf16", "fp8-dynamic", "int8-rtn", "int8-smoothquant-gptq"}
    assert set(scored) == {(v, t) for v in variants for t in ("gsm8k", "ifeval", "wikitext")}
    for (_, task), m in scored.items():
        assert m.n == ROWS
        assert m.settings["num_fewshot"] == (5 if task == "gsm8k" else 0)
        assert m.settings["limit"] == ROWS
        assert "local" in m.settings["data"]
    assert {m.kind for m in scored.values()} == {"accuracy", "perplexity"}
    checkpoints = {path.name for path in (tmp_path / "workspace" / "checkpoints").iterdir()}
    assert {"Small-Qwen2--fp8-dynamic", "Small-Qwen2--int8-smoothquant-gptq"} <= checkpoints


@pytest.mark.long
@pytest.mark.timeout(600)
def test_lab_06_runs_on_another_architecture(tmp_path: Path) -> None:
    model = make_model(tmp_path / "Small-OPT", "opt", hidden=96)  # other layer names, biases, groups of 96
    text = run_labs(model, "", tmp_path / "workspace", tmp_path / "out", [FP4], profile="tiny", rows=8)
    assert "self_attn.q_proj: 96 columns in groups of 96" in text
    assert "observed: the perplexity with 2 bits" in text
    assert f"End of {FP4}." in text
    grid = Ledger(tmp_path / "workspace" / "ledger.jsonl").headlines(model=short_name(str(model)), backend="simulated")
    assert {m.variant for m in grid} == {scheme.variant for scheme in paper_grid()}
    assert all(m.settings["calibration_rows"] == 8 for m in grid)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_lab_06_runs_on_the_workbench_profile(tmp_path: Path, shared_data: Path) -> None:
    model = make_model(tmp_path / "Small-Qwen2", "qwen2")
    text = run_labs(model, shared_data, tmp_path / "workspace", tmp_path / "out", [FP4], rows=4)
    assert "c4 is left out" in text  # and ptb: of the three texts this data folder has one
    assert f"End of {FP4}." in text
    lines = Ledger(tmp_path / "workspace" / "ledger.jsonl").newest(model=short_name(str(model)), task="wikitext2")
    assert {m.n for m in lines} == {4}
    assert {scheme.variant for scheme in paper_grid()} | {"mxfp4", "nvfp4"} <= {m.variant for m in lines}


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_labs_04_and_05_run_on_the_workbench_profile(tmp_path: Path, shared_data: Path) -> None:
    model = make_model(tmp_path / "Small-Qwen2", "qwen2")
    text = run_labs(model, shared_data, tmp_path / "workspace", tmp_path / "out", SERVING)
    for lab in SERVING:
        assert f"End of {lab}." in text

    ledger = Ledger(tmp_path / "workspace" / "ledger.jsonl")
    name = short_name(str(model))
    loads = [m for m in ledger.read() if m.metric == "output_tok_per_s" and m.variant == "bf16"]
    clients = [c for c in WORKBENCH.serving.concurrencies if c <= ROWS]
    assert {m.settings["concurrency"] for m in loads} >= set(clients)
    assert {m.model for m in loads} == {name}, "a workshop measures the speed of its own model"
    assert next(m.settings["num_fewshot"] for m in ledger.read() if m.variant == "e4m3, calibrated") == 8
    assert {m.model for m in ledger.headlines(variant="fp8-static", kind="accuracy")} == {name}


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("architecture", ["qwen3", "granite", "mistral", "gemma"])
def test_the_labs_run_on_other_architectures(tmp_path: Path, shared_data: Path, architecture: Architecture) -> None:
    model = make_model(tmp_path / f"Small-{architecture}", architecture)
    text = run_labs(model, shared_data, tmp_path / "workspace", tmp_path / "out")
    assert text.count("layers are int8-w8a8") >= 2


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_the_labs_run_on_a_sharded_model_with_tied_embeddings(tmp_path: Path, shared_data: Path) -> None:
    model = make_model(tmp_path / "Small-Sharded", "llama", tied=True, shard_size="200KB")
    assert len(list(model.glob("*.safetensors"))) > 1
    text = run_labs(model, shared_data, tmp_path / "workspace", tmp_path / "out")
    assert text.count("layers are int8-w8a8") >= 2
