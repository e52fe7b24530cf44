"""Checks judge right results as right and spoilt ones as wrong; each is shown both ways."""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit import checks
from labkit.card import Evidence, Score
from labkit.checkpoint import Finding, Inspection
from labkit.checks import Check
from labkit.compare import compare
from labkit.errors import CheckFailed, LabError
from labkit.evaluation import Evaluation, Request
from labkit.hardware import judge
from labkit.lab import Lab
from labkit.ledger import Measurement
from labkit.manifest import write_manifest
from labkit.perplexity import Losses
from labkit.profiles import TINY, Parameters
from labkit.serving import Alone, Load, Loaded, Repeated
from labkit.simulation import paper_grid
from labkit.transfer import Plan, bundle, parse
from labkit.workspace import Workspace
from labkit.zeroquant import Scored

GOOD = compare([1.0] * 95 + [0.0] * 5, [1.0] * 94 + [0.0] * 6)
COLLAPSED = compare([1.0] * 95 + [0.0] * 5, [1.0] * 3 + [0.0] * 97)


def scored(rows: int, value: float) -> Evaluation:
    request = Request("bf16", Path("bf16"), TINY.main_task, limit=100)
    return Evaluation(request, value, 0.0, rows, Path("samples.jsonl"), {}, {}, {}, 0.0)


LOAD = Load(concurrency=8, requests=8, input_tokens=16, output_tokens=4)


def loaded(output_tok_per_s: float) -> Loaded:
    return Loaded(LOAD, 0, 1.0, 1.0, output_tok_per_s, 1.0, 1.0, 1.0, 1.0, True)


def engine_alone(step_ms: float) -> Alone:
    return Alone(10**9, "bfloat16", {32: Repeated.of([step_ms], False)}, None)


def fp8(*values: float) -> torch.Tensor:
    return torch.tensor(values).to(torch.float8_e4m3fn)


def grid(nats: float = -1.0) -> list[Scored]:
    return [Scored(scheme, "gptq", 4.0, {"text": Losses((nats, nats), (5, 5))}) for scheme in paper_grid()]


PLACE = parse("s3://workshop/model")


def evidence() -> Evidence:
    """One score of 0.996 and 4,000 bytes of tensors."""
    tensors = Inspection(Path("x"), (), (), 4000, 4100, "", "", False, (), None)
    measured = Measurement("accuracy", "exact_match", 0.996, "fp8-dynamic", "tiny", task="tiny_problems")
    return Evidence("tiny", "fp8-dynamic", {}, tensors, None, {}, (Score(measured, None, None),), (), 0)


def sent(state: str = "") -> Path:
    """A published folder of one file; `flipped` has another content, `damaged` one that its manifest does not name."""
    folder = Path(tempfile.mkdtemp()) / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{1}" if state == "flipped" else "{0}")
    write_manifest(folder)
    if state == "damaged":
        (folder / "config.json").write_text("{1}")
    return folder


# name: (the check of a right result, the check of a spoilt one)
PAIRS: dict[str, tuple[Callable[[], Check], Callable[[], Check]]] = {
    "layers have the scheme": (
        lambda: checks.layers_have_scheme({"a": "int8-w8a8", "lm_head": "bf16"}, "int8-w8a8"),
        lambda: checks.layers_have_scheme({"a": "int8-w8a8", "b": "bf16"}, "int8-w8a8"),
    ),
    "some layer has the scheme": (
        lambda: checks.layers_have_scheme({"a": "int8-w8a8"}, "int8-w8a8"),
        lambda: checks.layers_have_scheme({"lm_head": "bf16"}, "int8-w8a8"),
    ),
    "bytes as predicted": (
        lambda: checks.bytes_as_predicted(1_005, 1_000),
        lambda: checks.bytes_as_predicted(1_020, 1_000),
    ),
    "values are finite": (lambda: checks.values_are_finite([]), lambda: checks.values_are_finite(["q_proj.weight"])),
    "reload is equal": (lambda: checks.reload_is_equal(0.001), lambda: checks.reload_is_equal(0.5)),
    "same tensors": (
        lambda: checks.same_tensors([], "one checkpoint against another"),
        lambda: checks.same_tensors(["a.weight"], "one checkpoint against another"),
    ),
    "gptq ran": (lambda: checks.gptq_ran([], ["a", "b"], 2), lambda: checks.gptq_ran([], ["a"], 2)),
    "gptq fell back nowhere": (lambda: checks.gptq_ran([], ["a"], 1), lambda: checks.gptq_ran(["a"], ["a"], 1)),
    "memory came back": (
        lambda: checks.memory_came_back(10**9, 10**9 + 10**8),
        lambda: checks.memory_came_back(10**9, 2 * 10**9),
    ),
    "server accepts": (
        lambda: checks.server_accepts([Finding("warning", "no chat template", "")]),
        lambda: checks.server_accepts([Finding("error", "actorder is static", "set actorder=None")]),
    ),
    "as good as alone": (lambda: checks.as_good_as_alone(0.010, 0.011), lambda: checks.as_good_as_alone(0.010, 0.013)),
    "judge waits for all": (
        lambda: checks.judge_waits_for_all({"plan": (), "evaluate": ("plan",), "compare": ("evaluate",)}),
        lambda: checks.judge_waits_for_all({"plan": (), "evaluate": ("plan",), "compare": ("plan",)}),
    ),
    "every step worked": (
        lambda: checks.every_step_worked(("compare",), "Lost: ...", 2),
        lambda: checks.every_step_worked(("evaluate",), "no memory", 0),
    ),
    "the comparison compared": (
        lambda: checks.every_step_worked((), "", 2),
        lambda: checks.every_step_worked(("compare",), "the store can't be reached", 0),
    ),
    "pipeline is green": (lambda: checks.is_green((), ""), lambda: checks.is_green(("compare",), "Lost: ...")),
    "pipeline is red": (lambda: checks.is_red(("compare",), "Lost: ..."), lambda: checks.is_red((), "")),
    "holds": (lambda: checks.holds(GOOD, "x"), lambda: checks.holds(COLLAPSED, "x")),
    "collapses": (lambda: checks.collapses(COLLAPSED, "x"), lambda: checks.collapses(GOOD, "x")),
    "outliers found": (
        lambda: checks.outliers_found({"a": [3, 1]}, (1, 3)),
        lambda: checks.outliers_found({"a": [3, 1], "b": [3]}, (1, 3)),
    ),
    "less is better": (
        lambda: checks.less_is_better(1.0, 2.1, "errors", ("a", "b"), margin=2.0),
        lambda: checks.less_is_better(1.0, 1.9, "errors", ("a", "b"), margin=2.0),
    ),
    "answers alike": (
        lambda: checks.answers_alike(["1", "2"], ["1", "3"]),
        lambda: checks.answers_alike(["1", "2", "3"], ["1", "x", "y"]),
    ),
    "setting matters": (
        lambda: checks.setting_matters(0.95, 0.1, "the chat template", 100),
        lambda: checks.setting_matters(0.95, 0.94, "the chat template", 100),
    ),
    "scores are whole": (
        lambda: checks.scores_are_whole([scored(100, 0.9), scored(40, 0.0)]),
        lambda: checks.scores_are_whole([scored(100, 0.9), scored(40, float("nan"))]),
    ),
    "some row was scored": (
        lambda: checks.scores_are_whole([scored(1, 1.0)]),
        lambda: checks.scores_are_whole([scored(0, 0.0)]),
    ),
    "no more rows were scored than asked for": (
        lambda: checks.scores_are_whole([scored(100, 0.9)]),
        lambda: checks.scores_are_whole([scored(101, 0.9)]),
    ),
    "all answered": (
        lambda: checks.all_answered(["1 + 1?"], ["2"]),
        lambda: checks.all_answered(["1 + 1?", "2 + 2?"], ["2", " "]),
    ),
    "some question was asked": (lambda: checks.all_answered(["?"], ["!"]), lambda: checks.all_answered([], [])),
    "rises first": (
        lambda: checks.rises_first([1.0, 1.5, 9.0, 30.0], [1.0, 1.0, 1.2, 20.0], ("static", "dynamic")),
        lambda: checks.rises_first([1.0, 1.0, 1.2, 20.0], [1.0, 1.5, 9.0, 30.0], ("static", "dynamic")),
    ),
    "both rise": (
        lambda: checks.rises_first([1.0, 9.0], [1.0, 5.0], ("static", "dynamic")),
        lambda: checks.rises_first([1.0, 9.0], [1.0, 1.0], ("static", "dynamic")),
    ),
    "cache is calibrated": (
        lambda: checks.cache_is_calibrated({"0.k_scale": 0.1, "0.v_scale": 0.2}, 1),
        lambda: checks.cache_is_calibrated({"0.k_scale": 0.1, "0.v_scale": 0.2}, 2),
    ),
    "scales of the cache are numbers above zero": (
        lambda: checks.cache_is_calibrated({"0.k_scale": 0.1, "0.v_scale": 0.2}, 1),
        lambda: checks.cache_is_calibrated({"0.k_scale": 0.0, "0.v_scale": 0.2}, 1),
    ),
    "loads are whole": (
        lambda: checks.loads_are_whole({"bf16": {LOAD: [loaded(10.0)]}}),
        lambda: checks.loads_are_whole({"bf16": {LOAD: [loaded(10.0)]}, "int8-rtn": {LOAD: []}}),
    ),
    "rates are numbers": (
        lambda: checks.loads_are_whole({"bf16": {LOAD: [loaded(10.0)]}}),
        lambda: checks.loads_are_whole({"bf16": {LOAD: [loaded(float("nan"))]}}),
    ),
    "engines were measured": (
        lambda: checks.engines_were_measured({"bf16": engine_alone(30.0)}, 32),
        lambda: checks.engines_were_measured({"bf16": engine_alone(30.0), "int8-rtn": engine_alone(0.0)}, 32),
    ),
    "engines were measured, one with fewer requests": (
        lambda: checks.engines_were_measured({"bf16": engine_alone(30.0)}, 32),
        lambda: checks.engines_were_measured({"bf16": engine_alone(30.0)}, 64),
    ),
    "servers are gone": (lambda: checks.servers_are_gone([]), lambda: checks.servers_are_gone(["bf16"])),
    "tokens as predicted": (
        lambda: checks.tokens_as_predicted(2_000, 2_010, "a cache"),
        lambda: checks.tokens_as_predicted(2_000, 1_000, "a cache"),
    ),
    "as the matrix says": (
        lambda: checks.as_the_matrix_says(judge("fp8-w8a8-static", "cpu-avx512-vnni", "cpu"), taken=False),
        lambda: checks.as_the_matrix_says(judge("fp8-w8a8-static", "cpu-avx512-vnni", "cpu"), taken=True),
    ),
    "never grows": (lambda: checks.never_grows([0.1, 0.1, 0.05], "x"), lambda: checks.never_grows([0.1, 0.11], "x")),
    "never grows, nothing": (lambda: checks.never_grows([1.0], "x"), lambda: checks.never_grows([], "x")),
    "never grows, NaN": (lambda: checks.never_grows([1.0], "x"), lambda: checks.never_grows([0.1, math.nan], "x")),
    "bits are equal": (
        lambda: checks.bits_are_equal(fp8(1.0, -0.5), fp8(1.0, -0.5), "x"),
        lambda: checks.bits_are_equal(fp8(0.0, 1.0), fp8(-0.0, 1.0), "x"),
    ),
    "grid is whole": (
        lambda: checks.grid_is_whole(grid(), grid(), 14),
        lambda: checks.grid_is_whole(grid(), grid()[:-1], 14),
    ),
    "grid is whole, not given back": (
        lambda: checks.grid_is_whole(grid(), grid(), 14),
        lambda: checks.grid_is_whole(grid(), grid(nats=-1.1), 14),
    ),
    "card is backed": (
        lambda: checks.card_is_backed("| 0.996 (0.990 to 1.000) | 4,000 bytes of tensors", evidence()),
        lambda: checks.card_is_backed("| 0.995 (0.990 to 1.000) | 4,000 bytes of tensors", evidence()),
    ),
    "is whole there": (
        lambda: checks.is_whole_there(Plan(PLACE, {}, {"config.json": 2}, (), True)),
        lambda: checks.is_whole_there(Plan(PLACE, {"config.json": 2}, {}, (), False)),
    ),
    "same contents": (
        lambda: checks.same_contents(bundle(sent()), sent()),
        lambda: checks.same_contents(bundle(sent()), sent("flipped")),
    ),
    "same contents, damaged": (
        lambda: checks.same_contents(bundle(sent()), sent()),
        lambda: checks.same_contents(bundle(sent()), sent("damaged")),
    ),
    "is refused": (
        lambda: checks.is_refused(LabError("x.safetensors is damaged"), "x.safetensors"),
        lambda: checks.is_refused(None, "x.safetensors"),
    ),
    "is repeated": (lambda: checks.is_repeated(1.17, 1.17, "x"), lambda: checks.is_repeated(1.17, 1.1700001, "x")),
}


def test_every_check_is_shown_both_ways() -> None:
    shown = "".join(inspect.getsource(function) for pair in PAIRS.values() for function in pair)
    judging = set(checks.__all__) - {"Check", "answer_is", "choice_is", "expectation", "invariant"}
    assert sorted(name for name in judging if f"checks.{name}(" not in shown) == []


@pytest.mark.parametrize("name", PAIRS)
def test_a_check_passes_on_a_right_result_and_fails_on_a_spoilt_one(name: str) -> None:
    right, spoilt = (make() for make in PAIRS[name])
    assert right.ok, right.found
    assert not spoilt.ok, spoilt.found
    assert spoilt.fix


def lab_of(tmp_path: Path, model: str = "", limit: int = 0) -> Lab:
    return Lab("01_fp8_rtn", TINY, Workspace(tmp_path), Parameters(model=model, limit=limit))


def test_a_failed_expectation_stops_the_embedded_model_s_lab(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match=r"a collapse is 20 points"):
        lab_of(tmp_path).check(checks.collapses(GOOD, "int8-rtn"))


@pytest.mark.parametrize("run", [{"model": "some/folder"}, {"limit": 4}], ids=["another model", "few rows"])
def test_a_failed_expectation_is_only_observed_where_nothing_can_be_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: dict[str, Any]
) -> None:
    lab_of(tmp_path, **run).check(checks.collapses(GOOD, "int8-rtn"))
    assert capsys.readouterr().out.startswith("observed: int8-rtn against the baseline")


def test_a_failed_invariant_stops_every_lab(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="NaN or infinity in q_proj"):
        lab_of(tmp_path, model="some/folder", limit=4).check(checks.values_are_finite(["q_proj"]))


@pytest.mark.parametrize(
    ("answer", "says"), [(..., "Not yet"), (2.0, "2 is right"), (2.01, "2.01 is right")], ids=["stub", "exact", "near"]
)
def test_an_exercise_says_not_yet_or_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: Any, says: str
) -> None:
    lab_of(tmp_path).exercise(checks.answer_is(answer, 2.0, 0.01, "count again"))
    assert says in capsys.readouterr().out


@pytest.mark.parametrize("answer", [2.5, "two", None, float("nan"), -2.0])
def test_a_wrong_answer_gets_the_hint(tmp_path: Path, answer: Any) -> None:
    with pytest.raises(CheckFailed, match="count again"):
        lab_of(tmp_path).exercise(checks.answer_is(answer, 2.0, 0.01, "count again"))


def test_any_choice_stands_where_the_samples_cannot_tell_but_no_other_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for answer in (True, False):
        lab_of(tmp_path).exercise(checks.choice_is(answer, None, "think of the activations"))
        assert f"✔ {answer} stands: so few samples can't tell" in capsys.readouterr().out
    with pytest.raises(CheckFailed, match="think of the activations"):
        lab_of(tmp_path).exercise(checks.choice_is(None, None, "think of the activations"))


@pytest.mark.parametrize(("answer", "right"), [(True, False), (1, True), ("BOS", "chat_template"), (None, False)])
def test_a_wrong_choice_gets_the_hint(tmp_path: Path, answer: Any, right: Any) -> None:
    with pytest.raises(CheckFailed, match="think of the activations"):
        lab_of(tmp_path).exercise(checks.choice_is(answer, right, "think of the activations"))
