"""The labs, run once from the command line: all pass, and they tell the story that they are there to tell."""

from __future__ import annotations

import base64
import itertools
import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
import torch

from labkit.engine import number_type
from labkit.hardware import capability
from labkit.manifest import verify_manifest
from labkit.profiles import TINY
from labkit.simulation import paper_grid
from tests.conftest import ROOT, LabsRun, each_lab

pytestmark = pytest.mark.labs


def executed(run: LabsRun, lab: str) -> Any:
    return nbformat.read(run.output / f"{lab}.ipynb", as_version=4)


def accuracy(run: LabsRun, variant: str) -> float:
    """The headline of a variant on the main task, which must be on vLLM over all rows of the profile."""
    (found,) = run.ledger.headlines(variant=variant, task=TINY.main_task.name)
    assert (found.backend, found.n, found.metric) == ("vllm", TINY.main_task.limit, "exact_match")
    return found.value


def test_every_lab_passes(labs_run: LabsRun) -> None:
    assert labs_run.returncode == 0, labs_run.stdout
    verdicts = {lab["name"]: (lab["verdict"], lab["reason"]) for lab in labs_run.report["labs"]}
    assert verdicts == dict.fromkeys((lab.name for lab in labs_run.labs), ("passed", ""))


def test_the_table_names_every_lab_and_the_report(labs_run: LabsRun) -> None:
    for lab in labs_run.labs:
        assert lab.name in labs_run.stdout
    assert str(labs_run.output / "report.html") in labs_run.stdout


def test_the_baseline_solves_nearly_all_problems(labs_run: LabsRun) -> None:
    assert accuracy(labs_run, "bf16") >= 0.93


@pytest.mark.parametrize("variant", ["fp8-dynamic", "int8-smoothquant-gptq"])
def test_a_good_scheme_stays_within_two_points(labs_run: LabsRun, variant: str) -> None:
    assert abs(accuracy(labs_run, variant) - accuracy(labs_run, "bf16")) <= 0.02


def test_plain_int8_loses_twenty_points_and_more(labs_run: LabsRun) -> None:
    assert accuracy(labs_run, "int8-rtn") <= accuracy(labs_run, "bf16") - 0.20


def test_the_four_scores_are_the_report_s_headline(labs_run: LabsRun) -> None:
    headline = labs_run.report["headline"]
    for variant in ("bf16", "fp8-dynamic", "int8-rtn", "int8-smoothquant-gptq"):
        assert headline[variant]["value"] == accuracy(labs_run, variant)
        assert headline[variant]["n"] == TINY.main_task.limit
        assert headline[variant]["stderr"] >= 0
    assert set(headline) == {m.variant for m in labs_run.ledger.headlines(kind="accuracy", backend="vllm")}


@pytest.mark.long
def test_a_served_speed_up_stands_in_the_report_as_it_was_measured(labs_run: LabsRun) -> None:
    gains = labs_run.ledger.headlines(metric="speedup")
    rates = {m.variant: m for m in labs_run.ledger.headlines(metric="output_tok_per_s")}
    assert rates.keys() == {"bf16"} | {m.variant for m in gains}
    for m in rates.values():
        assert m.settings["concurrency"] == TINY.serving.concurrencies[-1]
        assert m.n == m.settings["requests"] * TINY.serving.repeats
    (lab,) = [lab for lab in labs_run.report["labs"] if lab["name"] == "04_serving_throughput"]
    for gain in gains:
        assert gain.value == pytest.approx(rates[gain.variant].value / rates["bf16"].value)
        assert gain.ci_low <= gain.value <= gain.ci_high
        assert f"{gain.variant} {gain.value:.3f}" in lab["figure"]


@pytest.mark.long
def test_every_engine_s_speed_and_memory_went_into_the_ledger_with_its_number_type(labs_run: LabsRun) -> None:
    found = labs_run.ledger.newest(lab="04_serving_throughput", purpose="sweep")
    alone = [m for m in found if m.settings.get("served") is False]
    schemes = {"bf16": "bf16", "int8-rtn": "int8-w8a8", "fp8-dynamic": "fp8-w8a8-dynamic", "w4a16-rtn": "w4a16"}
    runs_here = {variant for variant, scheme in schemes.items() if capability(scheme).verdict != "no"}
    for metric in ("decode_tok_per_s", "loaded_bytes"):
        assert {m.variant for m in alone if m.metric == metric} == runs_here
    at_once = {m.settings["concurrency"] for m in alone if m.metric == "decode_tok_per_s" and m.variant == "bf16"}
    assert TINY.serving.concurrencies[-1] in at_once
    assert {m.settings["dtype"] for m in alone if m.variant == "bf16"} == {number_type(TINY.engine)}
    assert all(m.machine for m in alone)


def test_an_fp8_cache_holds_twice_the_tokens(labs_run: LabsRun) -> None:
    tokens = {m.variant: m.value for m in labs_run.ledger.newest(metric="cache_tokens")}
    baseline = tokens.pop("bf16")
    if capability("fp8-kv-cache").verdict == "no":
        pytest.skip("no FP8 cache on this CPU: lab 05 leaves it out")
    assert len(tokens) == 3
    assert set(tokens.values()) == {torch.empty(0, dtype=getattr(torch, number_type(TINY.engine))).itemsize * baseline}


def test_the_grid_is_in_the_ledger_and_int8_activations_stand_out(labs_run: LabsRun) -> None:
    grid = labs_run.ledger.headlines(lab="06_fp4_weights_lorc", kind="perplexity", backend="simulated")
    assert {m.variant for m in grid} == {scheme.variant for scheme in paper_grid()}
    assert len(grid) == 14
    for m in grid:
        assert (m.task, m.settings["method"]) == ("mean of texts", "gptq")
        assert m.settings["calibration_rows"] == TINY.simulation.rows
        assert m.settings["tokens"].keys() == {text.name for text in TINY.simulation.texts}
    value = {m.variant: m.value for m in grid}
    assert min(value["w8a8-int-int"], value["w4a8-int-int"]) > 5 * value["bf16"]
    assert max(v for name, v in value.items() if "int-int" not in name) < 1.05 * value["bf16"]
    nearest = labs_run.ledger.newest(lab="06_fp4_weights_lorc", task="mean of texts", purpose="sweep")
    assert set(value) <= {m.variant for m in nearest if m.settings["method"] == "rtn"}
    answered = labs_run.ledger.newest(lab="06_fp4_weights_lorc", kind="accuracy", backend="simulated")
    assert {(m.variant, m.n) for m in answered} == {(variant, TINY.simulation.limit) for variant in value}


def test_with_two_bits_gptq_and_lorc_pay(labs_run: LabsRun) -> None:
    found = {
        (m.variant, m.settings["method"]): m.value
        for m in labs_run.ledger.newest(lab="06_fp4_weights_lorc", task="mean of texts", purpose="sweep")
        if m.variant.startswith("w2a16") and m.settings.get("dampening_frac", 0.01) == 0.01
    }
    nearest = found["w2a16-int", "rtn"]
    assert found["w2a16-int", "gptq"] < 0.9 * nearest
    assert found["w2a16-int-lorc", "rtn"] < 0.95 * nearest


def test_every_headline_was_measured_in_this_run_with_its_settings(labs_run: LabsRun) -> None:
    runs = {m.run for m in labs_run.ledger.read()}
    assert len(runs) == 1
    assert runs != {""}
    for m in labs_run.ledger.headlines(kind="accuracy"):
        assert {"chat_template", "num_fewshot", "limit", "seed"} <= m.settings.keys()
        assert m.versions["vllm"]
        assert m.machine


def test_each_published_checkpoint_is_whole(labs_run: LabsRun) -> None:
    folders = [path for path in labs_run.workspace.checkpoints.iterdir() if path.is_dir()]
    assert {"bf16", "fp8-dynamic", "int8-rtn", "int8-gptq", "int8-smoothquant-gptq"} <= {path.name for path in folders}
    for folder in folders:
        assert not folder.name.startswith("."), f"{folder} was left behind"
        verify_manifest(folder)


def test_the_labs_keep_as_many_copies_of_the_model_as_their_metadata_says_and_no_scratch(labs_run: LabsRun) -> None:
    """What the embedded model has besides does not grow with a model: lab 04's own, lab 05's with larger outliers."""
    root = labs_run.workspace.root
    own = re.compile("speed-|tiny-k")
    folders = {path.parent for path in root.rglob("*.safetensors") if not own.match(path.parent.name)}
    labs = labs_run.labs
    assert len(folders) == sum(len(lab.keeps) for lab in labs if not lab.alone), "lab 04's is of its own model here"
    assert [lab.name for lab in labs if (root / "cache" / lab.name).exists()] == []


def test_the_calibration_s_fingerprint_stands_with_the_checkpoint(labs_run: LabsRun) -> None:
    manifest = verify_manifest(labs_run.workspace.checkpoint("int8-smoothquant-gptq"))
    assert len(manifest["calibration"]["fingerprint"]) == 64
    assert manifest["calibration"]["rows"] == TINY.calibration.rows


@pytest.mark.parametrize("lab", each_lab())
def test_each_figure_is_a_picture_with_a_description_under_it(labs_run: LabsRun, lab: str) -> None:
    found = 0
    for cell in executed(labs_run, lab).cells:
        outputs = [o for o in cell.get("outputs", []) if o.output_type == "display_data"]
        for output, after in itertools.zip_longest(outputs, outputs[1:]):
            if "image/png" in output.data:
                found += 1
                assert base64.b64decode(output.data["image/png"])[:4] == b"\x89PNG"
                assert after is not None
                assert len(after.data["text/markdown"].strip("*")) > 40
    assert found >= 1


@pytest.mark.parametrize("lab", each_lab())
def test_each_lab_s_checks_said_what_they_found(labs_run: LabsRun, lab: str) -> None:
    text = "".join(o.text for c in executed(labs_run, lab).cells for o in c.get("outputs", []) if "text" in o)
    assert text.count("✔ Looked at ") >= 2
    assert text.count("Not yet: ") >= 2  # the stubs, before the worked answers
    assert text.count(" is right.") >= 2


def test_the_reports_open(labs_run: LabsRun) -> None:
    suite = ElementTree.parse(labs_run.output / "junit.xml").getroot()
    assert {case.get("name") for case in suite.iter("testcase")} == {lab.name for lab in labs_run.labs}
    html = (labs_run.output / "report.html").read_text()
    assert all(lab.name in html for lab in labs_run.labs)
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_no_process_of_the_run_is_left(labs_run: LabsRun) -> None:
    left = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if environment.get("LABKIT_WORKSPACE") == str(labs_run.workspace.root) and process.pid != os.getpid():
            left.append(process.cmdline())
    assert left == []


def test_no_absolute_path_of_the_checkout_is_needed(labs_run: LabsRun, tmp_path: Path) -> None:
    """Notebooks found the workspace they were told; nothing was written beside them."""
    assert [p.name for p in (ROOT / "notebooks").iterdir() if p.suffix != ".ipynb"] in ([], [".ipynb_checkpoints"])
