"""The labs, run once from the command line: all pass, and in the long tier they tell the story they are there to tell.

CI's run is a short one (`-p limit`): a story needs all rows of the profile.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from typing import Any

import nbformat
import psutil
import pytest
import torch

from labkit.engine import number_type
from labkit.files import verify_manifest
from labkit.hardware import capability
from labkit.profiles import TINY
from labkit.simulation import paper_grid
from tests.conftest import LABS, ROOT, LabsRun

pytestmark = pytest.mark.labs
FP4 = "06_fp4_weights_lorc"
SERVING = "04_serving_throughput"
SPEEDS = {"bf16": "bf16", "int8-rtn": "int8-w8a8", "fp8-dynamic": "fp8-w8a8-dynamic", "w4a16-rtn": "w4a16"}


def executed(run: LabsRun, lab: str) -> Any:
    return nbformat.read(run.output / f"{lab}.ipynb", as_version=4).cells


def accuracy(run: LabsRun, variant: str) -> float:
    """The headline of a variant on the main task, which must be on vLLM over all rows that the run has."""
    (found,) = run.ledger.headlines(variant=variant, task=TINY.main_task.name)
    assert (found.backend, found.n, found.metric) == ("vllm", run.rows(TINY.main_task.limit or 0), "exact_match")
    return found.value


def test_every_lab_passes(labs_run: LabsRun) -> None:
    assert labs_run.returncode == 0, labs_run.stdout
    verdicts = {lab["name"]: (lab["verdict"], lab["reason"]) for lab in labs_run.report["labs"]}
    assert verdicts == dict.fromkeys((lab.name for lab in LABS), ("passed", ""))


def test_table_and_reports_name_every_lab_and_load_nothing_from_elsewhere(labs_run: LabsRun) -> None:
    html = (labs_run.output / "report.html").read_text()
    for lab in LABS:
        assert lab.name in labs_run.stdout
        assert lab.name in html
    assert str(labs_run.output / "report.html") in labs_run.stdout
    assert "http://" not in html.replace("http://www.w3.org", "")
    suite = ElementTree.parse(labs_run.output / "junit.xml").getroot()
    assert {case.get("name") for case in suite.iter("testcase")} == {lab.name for lab in LABS}


def test_the_scores_are_the_report_s_headline(labs_run: LabsRun) -> None:
    headline = labs_run.report["headline"]
    assert set(headline) == {m.variant for m in labs_run.ledger.headlines(kind="accuracy", backend="vllm")}
    for variant in ("bf16", "fp8-dynamic", "int8-rtn", "int8-smoothquant-gptq"):
        assert headline[variant]["value"] == accuracy(labs_run, variant)
        assert headline[variant]["n"] == labs_run.rows(TINY.main_task.limit or 0)
        assert headline[variant]["stderr"] >= 0


@pytest.mark.long
def test_good_schemes_stay_within_two_points_and_plain_int8_loses_twenty_and_more(labs_run: LabsRun) -> None:
    baseline = accuracy(labs_run, "bf16")
    assert baseline >= 0.93
    for variant in ("fp8-dynamic", "int8-smoothquant-gptq"):
        assert abs(accuracy(labs_run, variant) - baseline) <= 0.02
    assert accuracy(labs_run, "int8-rtn") <= baseline - 0.20


def test_speeds_stand_in_ledger_and_report_as_they_were_measured_and_with_their_number_type(labs_run: LabsRun) -> None:
    gains = labs_run.ledger.headlines(metric="speedup")
    rates = {m.variant: m for m in labs_run.ledger.headlines(metric="output_tok_per_s")}
    assert rates.keys() == {"bf16"} | {m.variant for m in gains}
    for m in rates.values():
        assert m.settings["concurrency"] == max(c for c in TINY.serving.concurrencies if c <= labs_run.rows(c))
        assert m.n == m.settings["requests"] * TINY.serving.repeats
    (lab,) = [lab for lab in labs_run.report["labs"] if lab["name"] == SERVING]
    for gain in gains:
        assert gain.value == pytest.approx(rates[gain.variant].value / rates["bf16"].value)
        assert gain.ci_low <= gain.value <= gain.ci_high
        assert f"{gain.variant} {gain.value:.3f}" in lab["figure"]
    found = labs_run.ledger.newest(lab=SERVING, purpose="sweep")
    alone = [m for m in found if m.settings.get("served") is False]
    runs_here = {variant for variant, scheme in SPEEDS.items() if capability(scheme).verdict != "no"}
    for metric in ("decode_tok_per_s", "loaded_bytes"):
        assert {m.variant for m in alone if m.metric == metric} == runs_here
    assert {m.settings["dtype"] for m in alone if m.variant == "bf16"} == {number_type(TINY.engine)}


def test_an_fp8_cache_holds_twice_the_tokens(labs_run: LabsRun) -> None:
    tokens = {m.variant: m.value for m in labs_run.ledger.newest(metric="cache_tokens")}
    baseline = tokens.pop("bf16")
    if capability("fp8-kv-cache").verdict == "no":
        pytest.skip("no FP8 cache on this CPU: lab 05 leaves it out")
    assert len(tokens) == 3
    assert set(tokens.values()) == {torch.empty(0, dtype=getattr(torch, number_type(TINY.engine))).itemsize * baseline}


def test_the_grid_is_in_the_ledger_by_both_ways_to_round(labs_run: LabsRun) -> None:
    grid = labs_run.ledger.headlines(lab=FP4, kind="perplexity", backend="simulated")
    schemes = {scheme.variant for scheme in paper_grid()}
    assert {m.variant for m in grid} == schemes
    assert len(grid) == 14
    for m in grid:
        assert (m.task, m.settings["method"]) == ("mean of texts", "gptq")
        assert m.settings["calibration_rows"] == labs_run.rows(TINY.simulation.rows)
        assert m.settings["tokens"].keys() == {text.name for text in TINY.simulation.texts}
    nearest = labs_run.ledger.newest(lab=FP4, task="mean of texts", purpose="sweep")
    assert schemes <= {m.variant for m in nearest if m.settings["method"] == "rtn"}
    answered = labs_run.ledger.newest(lab=FP4, kind="accuracy", backend="simulated")
    assert {(m.variant, m.n) for m in answered} == {(v, labs_run.rows(TINY.simulation.limit)) for v in schemes}


@pytest.mark.long
def test_int8_activations_stand_out_of_the_grid_and_with_two_bits_gptq_and_lorc_pay(labs_run: LabsRun) -> None:
    value = {m.variant: m.value for m in labs_run.ledger.headlines(lab=FP4, kind="perplexity", backend="simulated")}
    assert min(value["w8a8-int-int"], value["w4a8-int-int"]) > 5 * value["bf16"]
    assert max(v for name, v in value.items() if "int-int" not in name) < 1.05 * value["bf16"]
    two_bits = {
        (m.variant, m.settings["method"]): m.value
        for m in labs_run.ledger.newest(lab=FP4, task="mean of texts", purpose="sweep")
        if m.variant.startswith("w2a16") and m.settings.get("dampening_frac", 0.01) == 0.01
    }
    nearest = two_bits["w2a16-int", "rtn"]
    assert two_bits["w2a16-int", "gptq"] < 0.9 * nearest
    assert two_bits["w2a16-int-lorc", "rtn"] < 0.95 * nearest


def test_every_headline_was_measured_in_this_run_with_its_settings(labs_run: LabsRun) -> None:
    (run,) = {m.run for m in labs_run.ledger.read()}
    assert run
    for m in labs_run.ledger.headlines(kind="accuracy"):
        assert {"chat_template", "num_fewshot", "limit", "seed"} <= m.settings.keys()
        assert m.versions["vllm"]
        assert m.machine


def test_each_published_checkpoint_is_whole_and_says_what_calibrated_it(labs_run: LabsRun) -> None:
    folders = [path for path in labs_run.workspace.checkpoints.iterdir() if path.is_dir()]
    assert {"bf16", "fp8-dynamic", "int8-rtn", "int8-gptq", "int8-smoothquant-gptq"} <= {path.name for path in folders}
    for folder in folders:
        assert not folder.name.startswith("."), f"{folder} was left behind"
        made = verify_manifest(folder)
        if folder.name == "int8-smoothquant-gptq":
            assert len(made["calibration"]["fingerprint"]) == 64
            assert made["calibration"]["rows"] == labs_run.rows(TINY.calibration.rows)


def test_the_labs_keep_as_many_copies_of_the_model_as_their_metadata_says_and_no_scratch(labs_run: LabsRun) -> None:
    """What the embedded model has besides does not grow with a model: lab 04's own, lab 05's with larger outliers."""
    root, own = labs_run.workspace.root, re.compile("speed-|tiny-k")
    folders = {path.parent for path in root.rglob("*.safetensors") if not own.match(path.parent.name)}
    assert len(folders) == sum(len(lab.keeps) for lab in LABS if not lab.alone), "lab 04's is of its own model here"
    assert [lab.name for lab in LABS if (root / "cache" / lab.name).exists()] == []


def test_each_figure_is_a_picture_with_a_description_and_checks_and_exercises_say_what_they_found(
    labs_run: LabsRun,
) -> None:
    for lab in LABS:
        figures, text = 0, ""
        for cell in executed(labs_run, lab.name):
            text += "".join(output.text for output in cell.get("outputs", []) if "text" in output)
            shown = [output for output in cell.get("outputs", []) if output.output_type == "display_data"]
            for output, after in itertools.zip_longest(shown, shown[1:]):
                if "image/png" in output.data:
                    figures += 1
                    assert base64.b64decode(output.data["image/png"])[:4] == b"\x89PNG"
                    assert len(after.data["text/markdown"].strip("*")) > 40, lab.name
        assert figures >= 1, lab.name
        assert text.count("✔ Looked at ") >= 2, lab.name
        assert text.count("Not yet: ") >= 2, f"{lab.name}: the stubs, before the worked answers"
        assert len(re.findall(r" (is right|stands: )", text)) >= 2, lab.name


def test_no_process_of_the_run_is_left_and_nothing_was_written_beside_the_notebooks(labs_run: LabsRun) -> None:
    left = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("LABKIT_WORKSPACE") == str(labs_run.workspace.root) and process.pid != os.getpid():
                left.append(process.cmdline())
    assert left == []
    assert [p.name for p in (ROOT / "notebooks").iterdir() if p.suffix != ".ipynb"] in ([], [".ipynb_checkpoints"])
