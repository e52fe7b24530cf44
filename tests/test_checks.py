"""Checks judge right results as right and spoilt ones as wrong; each is shown both ways."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labkit import checks
from labkit.checkpoint import Finding
from labkit.errors import CheckFailed
from labkit.evaluate import Evaluation, Request
from labkit.lab import Lab
from labkit.profiles import TINY, Parameters
from labkit.store import Context, Workspace
from tools import notebooks


def lab_of(folder: Path, model: str = "", limit: int = 0) -> Lab:
    return Lab("01_fp8_rtn", Context(Workspace(folder)), Parameters(model=model, limit=limit))


# --- what a quantize made ---------------------------------------------------------------------------------------------

WARNING, ERROR = Finding("warning", "no chat template", ""), Finding("error", "actorder is static", "set actorder=None")
FACTS: dict[str, Any] = {
    "schemes": {"a": "int8-w8a8", "lm_head": "bf16"},
    "not_finite": (),
    "recipe": "GPTQModifier",
    "gptq_layers": ("a",),
    "fallbacks": (),
    "has_model": True,
    "reload_difference": lambda: 0.001,
    "before_bytes": 10**9,
    "after_bytes": 10**9 + 10**8,
    "findings": [WARNING],
}


def judged(scheme: str = "int8-w8a8", **spoilt: Any) -> list[checks.Check]:
    facts = SimpleNamespace(**FACTS | spoilt)
    return list(checks.quantized(facts, facts, facts.findings, scheme))  # type: ignore[arg-type]


def test_a_quantize_that_did_all_right_passes_every_check_and_is_not_asked_for_what_it_does_not_have() -> None:
    """Such as layers that are quantized, GPTQ, a model in memory: a cache's scales, or files that a library wrote."""
    for asked, count in (judged(), 6), (judged("", schemes={"a": "bf16"}, recipe="", has_model=False), 3):
        assert [check.ok for check in asked] == [True] * count


@pytest.mark.parametrize(
    ("spoilt", "found"),
    [
        ({"schemes": {"a": "int8-w8a8", "b": "bf16"}}, "1 layers are int8-w8a8, but b is bf16"),
        ({"schemes": {"lm_head": "bf16"}, "recipe": ""}, "0 layers are int8-w8a8"),
        ({"not_finite": ("q_proj.weight",)}, "NaN or infinity in q_proj.weight"),
        ({"schemes": {"a": "int8-w8a8", "b": "int8-w8a8"}}, "GPTQ worked on 1 of 2 quantized layers"),
        ({"fallbacks": ("a",)}, "fell back in 1"),
        ({"reload_difference": lambda: 0.5}, "they differ by 50.000% of their size"),
        ({"findings": [WARNING, ERROR]}, "actorder is static"),
        ({"after_bytes": 2 * 10**9}, "1,000 MB before, 2,000 MB after"),
    ],
)
def test_what_a_quantize_did_wrong_is_found_by_one_check_that_says_what_to_do(
    spoilt: dict[str, Any], found: str
) -> None:
    (wrong,) = [check for check in judged(**spoilt) if not check.ok]
    assert found in wrong.found
    assert wrong.fix


@pytest.mark.parametrize(
    ("rows", "value", "ok"),
    [(100, 0.9, True), (40, 0.0, True), (40, float("nan"), False), (0, 0.0, False), (101, 0.9, False)],
)
def test_an_evaluation_must_have_scored_rows_as_many_as_asked_for_at_most_and_given_a_number(rows, value, ok) -> None:
    request = Request("bf16", Path("bf16"), TINY.main_task, limit=100)
    check = checks.scored([Evaluation(request, value, 0.0, rows, Path("samples.jsonl"), {}, {}, {}, 0.0)])
    assert (check.ok, bool(check.fix)) == (ok, True)


# --- what a lab makes of a judgement ----------------------------------------------------------------------------------


def test_a_judgement_that_fails_stops_the_embedded_model_s_lab_and_one_that_holds_says_what_it_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = lab_of(tmp_path)
    for judge in lab.check, lab.expect:
        judge(True, "the answer", "42", "count again")
        assert capsys.readouterr().out == "✔ Looked at the answer: 42.\n"
        with pytest.raises(CheckFailed, match=r"Looked at the answer: 41\.\nNow: count again"):
            judge(False, "the answer", "41", "count again")


@pytest.mark.parametrize("run", [{"model": "some/folder"}, {"limit": 4}], ids=["another model", "few rows"])
def test_where_nothing_can_be_expected_an_expectation_is_only_observed_and_an_invariant_still_stops_the_lab(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: dict[str, Any]
) -> None:
    lab_of(tmp_path, **run).expect(False, "the answer", "41", "count again")
    assert capsys.readouterr().out == "observed: the answer: 41.\n"
    with pytest.raises(CheckFailed, match="the answer: 41"):
        lab_of(tmp_path, **run).check(False, "the answer", "41", "count again")


def differing(*differences: float) -> list[SimpleNamespace]:
    return [SimpleNamespace(difference=each, n=500) for each in differences]


GOOD, COLLAPSED = differing(-0.01, -0.5)
RECOVERED = {"fp8-dynamic": GOOD, "int8-smoothquant-gptq": GOOD, "int8-rtn": COLLAPSED, "fp8-static": GOOD}
SCORE = {"baseline": GOOD, "recoveries": RECOVERED}
VALUES = {value: SimpleNamespace(value=value) for value in (0.1, 0.8, 0.9)}
TEXT = SimpleNamespace(metric="word_perplexity")
GREEN, RED = SimpleNamespace(failed=(), said=""), SimpleNamespace(failed=("compare",), said="Lost: recovery")
RISE = {"factors": range(3), "suffered": {"fp8-static": [1, 3, 9], "fp8-dynamic": [1, 1, 3]}}
# Lab, and for each `lab.expect` of its cells in their order: what the cell has of a right and of a spoilt run.
IN_CELLS: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "01_fp8_rtn": [
        ({"by_channel": 1.0, "by_tensor": 2.0}, {"by_channel": 2.0}),
        ({"kept": 1.0, "quantized": 2.0}, {"kept": 2.0}),
        ({"questions": "abc", "same": 2}, {"same": 1}),
    ],
    "02_int8_smoothquant_gptq": [
        ({"first": [3, 7], "outliers": "abcd", "alike": 4}, {"alike": 3}),
        ({"recovery": COLLAPSED}, {"recovery": GOOD}),
        ({"of_weights": 1.0, "of_activations": 2.1}, {"of_activations": 1.9}),
        ({"best": 1.0, "plain_error": 2.1}, {"plain_error": 1.9}),
        ({"gptq_error": 1.0, "rtn_error": 1.1}, {"gptq_error": 1.1}),
        ({"both": 0.01}, {"both": -0.03}),
        ({"alone": -0.5}, {"alone": -0.19}),
    ],
    "03_evaluation": [
        (SCORE | {"variant": "fp8-dynamic"}, {"variant": "int8-rtn"}),
        (SCORE, {"recoveries": {"int8-rtn": GOOD}}),
        ({"few": 9, "good": VALUES[0.9], "bare": VALUES[0.1]}, {"bare": VALUES[0.8]}),
        ({"text": TEXT, "few": 9, "one": VALUES[0.1], "two": VALUES[0.9]}, {"one": VALUES[0.9]}),
    ],
    "04_serving_throughput": [({"questions": "abc", "same": 2}, {"same": 1})],
    "05_static_fp8_kv_cache": [
        ({"recoveries": RECOVERED}, {"recoveries": {"fp8-static": COLLAPSED}}),
        ({"moved": {"fp8-dynamic": 1.0, "fp8-static": 2.0}}, {"moved": {"fp8-dynamic": 2.0, "fp8-static": 2.0}}),
        (
            RISE | {"doubled": {"fp8-static": 1, "fp8-dynamic": 2}},
            {"doubled": {"fp8-static": 2, "fp8-dynamic": 1}},
        ),
        ({"variant": "e4m3", "found": GOOD}, {"found": COLLAPSED}),
        ({"text": TEXT, "good": 1.0, "bad": 2.0}, {"bad": 1.0}),
    ],
    "06_fp4_weights_lorc": [
        ({"ordered": ["q_proj"], "by_fp8": 1.0, "by_int8": 2.0}, {"by_int8": 1.0}),
        ({"lines": {"GPTQ": [1.0]}, "better": "GPTQ", "nearest": 2.0, "found": ""}, {"nearest": 1.0}),
        ({"first_text": "stories", "sixteen": 1.0, "four": 2.0}, {"four": 1.0}),
    ],
    "07_publish": [({"sound": 1.0, "damaged": 2.1}, {"damaged": 1.9})],
    "08_scale_out": [
        ({"green": GREEN}, {"green": RED}),
        ({"red": RED}, {"red": GREEN}),
        ({"same": True, "compared": [{"tensors that differ": 0}]}, {"same": False}),
    ],
}


def expectations() -> dict[str, list[str]]:
    """The calls of `lab.expect` that stand in the cells of each lab, in their order."""
    found: dict[str, list[str]] = {}
    for path in notebooks.lab_paths():
        for cell in notebooks.read(path)["cells"]:
            code = ast.parse(notebooks.source(cell) if cell["cell_type"] == "code" else "")
            calls = [node for node in ast.walk(code) if isinstance(node, ast.Call)]
            told = [ast.unparse(call) for call in sorted(calls, key=lambda call: call.lineno)]
            found[path.stem] = found.get(path.stem, []) + [text for text in told if text.startswith("lab.expect(")]
    return {lab: calls for lab, calls in found.items() if calls}


def test_every_expectation_that_stands_in_a_cell_is_shown_both_ways(tmp_path: Path) -> None:
    found = expectations()
    assert {lab: len(calls) for lab, calls in found.items()} == {lab: len(runs) for lab, runs in IN_CELLS.items()}
    for lab, calls in found.items():
        for call, (right, spoilt) in zip(calls, IN_CELLS[lab], strict=True):
            exec(call, {"lab": lab_of(tmp_path), **right})
            with pytest.raises(CheckFailed, match="\nNow: "):
                exec(call, {"lab": lab_of(tmp_path), **right, **spoilt})


# --- exercises --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right", "says"),
    [
        (..., 2.0, "Not yet"),
        (2.0, 2.0, "✔ 2 is right."),
        (2.01, 2.0, "✔ 2.01 is right."),
        ("chat_template", "chat_template", "✔ 'chat_template' is right."),
        (True, None, "✔ True stands: so few samples can't tell"),
        (False, None, "✔ False stands: so few samples can't tell"),
    ],
)
def test_an_exercise_says_not_yet_or_right(capsys: pytest.CaptureFixture[str], answer: Any, right: Any, says: str):
    Lab.exercise(answer, right, "count again")
    assert capsys.readouterr().out.startswith(says)


WRONG_NUMBERS = [(answer, 2.0) for answer in (2.5, 2.03, "two", None, float("nan"), -2.0)]
WRONG_CHOICES = [(True, False), (1, True), ("BOS", "chat_template"), (None, False), (None, None)]


@pytest.mark.parametrize(("answer", "right"), WRONG_NUMBERS + WRONG_CHOICES)
def test_a_wrong_answer_gets_the_hint(answer: Any, right: Any) -> None:
    with pytest.raises(CheckFailed, match=r"Not quite: [\s\S]*count again"):
        Lab.exercise(answer, right, "count again")
