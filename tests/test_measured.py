"""What a lab writes down of its speeds, and which model it measures them on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labkit import measured
from labkit.engine import number_type
from labkit.files import read_manifest
from labkit.lab import Lab
from labkit.ledger import SPEEDUP
from labkit.profiles import EMBEDDED, SPEED, TINY, WORKBENCH, Parameters
from labkit.serve import Alone, Load, Loaded, Repeated
from tests.models import make_context

LIGHT, HEAVY = Load(1, 2, 16, 8), Load(32, 32, 16, 8)
PREFILL = Load(2, 2, 64, 1)


def loaded(load: Load, output_tok_per_s: float) -> Loaded:
    return Loaded(load, 0, 1.0, output_tok_per_s / 8, output_tok_per_s, 20.0, 30.0, 5.0, 9.0, compiled=False)


def make_lab(folder: Path, profile=TINY, **parameters: str) -> Lab:
    return Lab("04_serving_throughput", replace(make_context(folder), profile=profile), Parameters(**parameters))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return make_lab(tmp_path)


def test_the_heaviest_load_is_the_headline_and_the_rest_is_sweep_with_median_and_extremes(lab: Lab) -> None:
    runs = {
        LIGHT: [loaded(LIGHT, 10.0)],
        HEAVY: [loaded(HEAVY, speed) for speed in (110.0, 100.0, 130.0)],
        PREFILL: [loaded(PREFILL, 3.0)],
    }
    measured.record_loads(lab, "int8-rtn", runs, headline=HEAVY)
    headlines = {m.metric: m for m in lab.workspace.ledger.headlines()}
    assert set(headlines) == {*measured.RATES, *measured.TIMES}
    rate = headlines["output_tok_per_s"]
    assert (rate.value, rate.ci_low, rate.ci_high, rate.n, rate.unit) == (110.0, 100.0, 130.0, 96, "tok/s")
    assert (rate.kind, headlines["itl_ms"].kind) == ("throughput", "latency")
    assert {"concurrency": 32, "repeats": 3, "input_tokens": 16, "compiled": False}.items() <= rate.settings.items()
    assert rate.machine
    of_prefill = [m.metric for m in lab.workspace.ledger.newest(purpose="sweep") if m.settings["concurrency"] == 2]
    assert not [metric for metric in of_prefill if metric.startswith("itl")], "one token has none after it"


def test_a_speed_up_keeps_its_load_and_spread(lab: Lab) -> None:
    sides = ([150.0, 180.0], [100.0, 120.0])
    ours, theirs = (measured.repeated([loaded(HEAVY, rate) for rate in rates], "output_tok_per_s") for rates in sides)
    measured.record_speed(lab, "int8-rtn", SPEEDUP, ours.over(theirs), load=HEAVY, headline=True)
    (found,) = lab.workspace.ledger.headlines(metric=SPEEDUP)
    assert (found.value, found.ci_low, found.ci_high, found.unit) == (1.5, 1.25, 1.8, "×")
    assert found.settings["dtype"] == number_type(TINY.engine)


def test_what_an_engine_measured_without_a_server_is_sweep_and_says_so(lab: Lab) -> None:
    steps = {32: Repeated.of([40.0, 50.0, 32.0], True), 1: Repeated.of([10.0], True)}
    prefill = Repeated.of([1000.0, 1100.0, 1050.0], True)
    measured.record_alone(lab, "bf16", Alone(10**9, "float32", steps, prefill))
    measured.record_alone(lab, "fp8-dynamic", Alone(10**8, "float32", {32: Repeated.of([6000.0], True)}, None))
    found = {(m.metric, m.settings.get("concurrency")): m for m in lab.workspace.ledger.newest(variant="bf16")}
    decode = ("decode_tok_per_s", 32), ("decode_tok_per_s", 1)
    assert set(found) == {*decode, ("prefill_tok_per_s", None), ("loaded_bytes", None)}
    assert {(m.backend, m.purpose, m.settings["served"], m.settings["dtype"]) for m in found.values()} == {
        ("vllm", "sweep", False, "float32")
    }
    one = found["decode_tok_per_s", 32]
    assert (one.value, one.ci_low, one.ci_high, one.n) == (800.0, 640.0, 1000.0, 3)
    assert found["prefill_tok_per_s", None].settings["input_tokens"] == TINY.serving.prefill_tokens
    slow = {m.metric for m in lab.workspace.ledger.newest(variant="fp8-dynamic")}
    assert slow == {"decode_tok_per_s", "loaded_bytes"}


def test_speed_is_measured_on_the_profiles_speed_model_unless_another_was_asked_for(lab: Lab, tmp_path: Path) -> None:
    assert (lab.model_name, lab.on_speed_model().model_name) == (EMBEDDED, SPEED)
    assert lab.on_speed_model().checkpoint("int8-rtn").name == f"{SPEED}--int8-rtn"
    for other in (make_lab(tmp_path, model="some/model"), make_lab(tmp_path, WORKBENCH)):
        assert other.on_speed_model() is other


def test_the_speed_model_is_made_once_and_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = (make_lab(tmp_path / name).on_speed_model() for name in ("a", "b"))
    files = [read_manifest(lab.base)["files"]["model.safetensors"] for lab in (first, second)]
    assert files[0] == files[1]
    assert 810_000_000 < files[0]["bytes"] < 825_000_000
    assert (first.has("bf16"), first.has("int8-rtn")) == (True, False)
