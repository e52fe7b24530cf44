"""A run's report says the same to a reader, a program and a CI server, whatever the labs printed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from xml.etree import ElementTree

from labkit.ledger import Ledger, Measurement
from labkit.ops.report import (
    Failure,
    LabResult,
    RunReport,
    Score,
    Skip,
    html,
    result_table,
    run_headlines,
    scores,
    write_report,
)
from labkit.profiles import TINY

NASTY = "<script>alert('x')</script> & \x1b[31mred\x1b[0m \x00\x07"
PASSED = LabResult("01_fp8_rtn", "passed", seconds=48.2, peak_bytes=1_200_000_000, notebook="01_fp8_rtn.ipynb")
FAILED = LabResult(
    "02_int8",
    "failed",
    "cell 7 (check(result)): CheckFailed: not finite",
    seconds=9.0,
    log="02_int8.log",
    failure=Failure("cell 7 (check(result))", f"CheckFailed: {NASTY}", f"Traceback {NASTY}", f"tail {NASTY}"),
)
NO_GPU = LabResult("04_fp4", "skipped", "nvfp4: no kernel on a CPU", capability=True)
BLOCKED = LabResult("03_evaluation", "skipped", "needs 02_int8, which failed")
LEFT_OUT = replace(PASSED, skipped=(Skip("the FP8 KV cache", "needs AVX-512"),))
REPORT = RunReport(
    profile="tiny",
    seconds=57.5,
    headline={"bf16": Score(0.94, 0.011, 500, "tiny_problems"), "int8-rtn": Score(0.002, None, None, "tiny_problems")},
    labs=(PASSED, FAILED, BLOCKED, NO_GPU),
    complete=True,
    stopped="",
    run="20261121T080000.000Z",
    started="2026-11-21T08:00:00.000+00:00",
    workspace="/course/workspace",
    parameters={"limit": 20},
    machine="two cores",
    level="vnni",
    probe_seconds=0.1,
)


def test_a_run_succeeds_only_if_every_lab_passed_or_is_beyond_this_machine() -> None:
    assert replace(REPORT, labs=(PASSED, NO_GPU)).succeeded
    for lab in (FAILED, BLOCKED, replace(PASSED, verdict="timeout"), replace(PASSED, verdict="dead-kernel")):
        assert not replace(REPORT, labs=(PASSED, lab)).succeeded
    assert not replace(REPORT, labs=(PASSED,), complete=False).succeeded
    assert not replace(REPORT, labs=(PASSED,), stopped="Ctrl-C").succeeded


def test_the_json_has_the_fields_of_the_design(tmp_path: Path) -> None:
    write_report(replace(REPORT, labs=(LEFT_OUT,)), tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["profile"], written["seconds"], written["complete"]) == ("tiny", 57.5, True)
    assert written["headline"]["bf16"] == {"value": 0.94, "stderr": 0.011, "n": 500, "task": "tiny_problems"}
    keys = "profile seconds headline labs complete stopped run started workspace parameters machine level"
    assert list(written) == [*keys.split(), "probe_seconds", "jobs", "notes"]
    keys = "name verdict reason seconds peak_bytes skipped notebook page log figure capability failure before_seconds"
    assert list(written["labs"][0]) == [*keys.split(), "unchanged"]
    assert written["labs"][0]["skipped"] == [{"part": "the FP8 KV cache", "reason": "needs AVX-512"}]


def test_the_page_shows_failures_first_and_nothing_that_a_lab_printed_becomes_markup() -> None:
    page = html(REPORT)
    assert page.index("CheckFailed") < page.index("Peak memory")
    for said in ("2 of 4 labs did not pass", "cell 7 (check(result))", "tail", "0.940", "needs 02_int8, which failed"):
        assert said in page
    assert not re.search(r"<(link|img|script|iframe)\b|url\(|@import", page), "the page needs no other file"
    assert set(re.findall(r' (?:href|src)="([^"]*)"', page)) == {"01_fp8_rtn.ipynb", "02_int8.log"}


def test_the_page_says_how_the_run_stands() -> None:
    for change, said in (
        ({"labs": (PASSED, NO_GPU)}, "All labs passed"),
        ({"complete": False, "stopped": "Ctrl-C"}, "The run was stopped by Ctrl-C"),
        ({"complete": False}, "if nothing runs any more, the run was killed"),
        ({"headline": {}, "notes": ("the ledger is damaged",)}, "the ledger is damaged"),
        ({"labs": (LEFT_OUT,)}, "the FP8 KV cache: needs AVX-512"),
    ):
        assert said in html(replace(REPORT, **change))


def test_junit_counts_and_shows_what_went_wrong(tmp_path: Path) -> None:
    timeout = replace(FAILED, name="05_slow", verdict="timeout")
    write_report(replace(REPORT, labs=(*REPORT.labs, timeout, replace(LEFT_OUT, name="06_part"))), tmp_path)
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    counts = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped", "time")}
    assert counts == {"tests": "6", "failures": "1", "errors": "2", "skipped": "1", "time": "57.500"}
    assert {case.get("name"): [found.tag for found in case] for case in suite} == {
        "01_fp8_rtn": [],
        "02_int8": ["failure"],
        "03_evaluation": ["error"],  # skipped, but not for this machine's sake
        "04_fp4": ["skipped"],
        "05_slow": ["error"],
        "06_part": ["system-out"],
    }
    (failure,) = suite[1]
    assert (failure.get("type"), failure.get("message")) == ("failed", FAILED.reason)
    for said in ("cell 7", "alert('x')", "red", "Traceback", "end of the log"):
        assert said in (failure.text or "")
    assert "\x1b" not in (failure.text or "")


def test_the_table_of_the_terminal_has_a_line_for_each_lab_and_the_reasons_below() -> None:
    lines = result_table(REPORT).splitlines()
    assert re.fullmatch(r"01_fp8_rtn +passed +48 +1\.2 GB", lines[2])
    assert "02_int8 failed: cell 7 (check(result)): CheckFailed: not finite" in lines
    assert "tiny_problems, bf16: 0.940 ± 0.011 (n=500)" in lines
    assert lines[-1] == "tiny on vnni: 58 s in all, peak memory 1.2 GB"
    assert "left out the FP8 KV cache: needs AVX-512" in result_table(replace(REPORT, labs=(LEFT_OUT,)))


def test_scores_are_those_of_the_first_labs_backend_in_whatever_order_they_came(tmp_path: Path) -> None:
    def line(lab: str, variant: str, backend: str, value: float) -> Measurement:
        more = {"task": TINY.main_task.name, "backend": backend, "n": 500, "lab": lab, "run": "this"}
        return Measurement("accuracy", "exact_match", value, variant, "tiny", **more)

    lines = (
        line("03_evaluation", "bf16", "vllm", 0.9),
        line("03_evaluation", "fp8-dynamic", "vllm", 0.8),
        line("05_static_fp8_kv_cache", "fp8-static", "hf", 0.7),
    )
    for number, some in enumerate(permutations(lines)):
        ledger = Ledger(tmp_path / f"{number}.jsonl")
        ledger.append(some)
        found = scores(run_headlines(ledger, "this"), TINY)
        assert {variant: score.value for variant, score in found.items()} == {"bf16": 0.9, "fp8-dynamic": 0.8}
        unchanged = run_headlines(ledger, "later", {one.lab: "this" for one in reversed(lines)})
        assert [one.lab for one in unchanged] == sorted(one.lab for one in lines), "where its own would stand"
