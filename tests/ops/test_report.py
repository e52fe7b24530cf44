"""A run's report says the same to a reader, a program and a CI server, whatever the labs printed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from labkit.ops.records import Failure, LabResult, RunReport, Score, Skip
from labkit.ops.report import html, result_table, write_report

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


class Page(HTMLParser):
    """The tags, link targets and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_run_succeeds_only_if_every_lab_passed_or_is_beyond_this_machine() -> None:
    assert replace(REPORT, labs=(PASSED, NO_GPU)).succeeded
    for lab in (FAILED, BLOCKED, replace(PASSED, verdict="timeout"), replace(PASSED, verdict="dead-kernel")):
        assert not replace(REPORT, labs=(PASSED, lab)).succeeded
    assert not replace(REPORT, labs=(PASSED,), complete=False).succeeded
    assert not replace(REPORT, labs=(PASSED,), stopped="Ctrl-C").succeeded


def test_the_json_has_the_fields_of_the_design(tmp_path: Path) -> None:
    write_report(replace(REPORT, labs=(replace(PASSED, skipped=(Skip("serving", "no kernel"),)),)), tmp_path)
    written = json.loads((tmp_path / "report.json").read_text())
    assert (written["profile"], written["seconds"], written["complete"]) == ("tiny", 57.5, True)
    assert written["headline"]["bf16"] == {"value": 0.94, "stderr": 0.011, "n": 500, "task": "tiny_problems"}
    lab = written["labs"][0]
    assert set(lab) >= {"name", "verdict", "reason", "seconds", "peak_bytes", "skipped", "notebook"}
    assert lab["skipped"] == [{"part": "serving", "reason": "no kernel"}]


def test_the_page_shows_failures_before_the_table_with_error_and_log() -> None:
    page = Page(html(REPORT))
    assert "2 of 4 labs did not pass" in page.text
    assert page.text.index("CheckFailed") < page.text.index("Peak memory")
    assert "cell 7 (check(result))" in page.text
    assert "tail" in page.text
    assert "0.940" in page.text
    assert "needs 02_int8, which failed" in page.text


def test_nothing_that_a_lab_printed_becomes_markup() -> None:
    assert "script" not in Page(html(REPORT)).tags
    assert "&lt;script&gt;" in html(REPORT)


def test_the_page_needs_no_other_file_and_links_to_the_notebooks_beside_it() -> None:
    page = Page(html(REPORT))
    assert set(page.tags).isdisjoint({"link", "img", "script", "iframe"})
    assert set(page.links) == {"01_fp8_rtn.ipynb", "02_int8.log"}
    assert not re.search(r"url\(|@import", html(REPORT))


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (replace(REPORT, labs=(PASSED, NO_GPU)), "All labs passed"),
        (replace(REPORT, complete=False, stopped="Ctrl-C"), "The run was stopped by Ctrl-C"),
        (replace(REPORT, complete=False), "if nothing runs any more, the run was killed"),
        (replace(REPORT, headline={}, notes=("the ledger can't be read",)), "the ledger can't be read"),
    ],
)
def test_the_page_says_how_the_run_stands(report: RunReport, said: str) -> None:
    assert said in Page(html(report)).text


def test_junit_counts_and_shows_what_went_wrong(tmp_path: Path) -> None:
    timeout = replace(FAILED, name="05_slow", verdict="timeout")
    write_report(replace(REPORT, labs=(*REPORT.labs, timeout)), tmp_path)
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5",
        "failures": "1",
        "errors": "2",
        "skipped": "1",
    }
    cases = {case.get("name"): case for case in suite}
    assert list(cases["01_fp8_rtn"]) == []
    failure = cases["02_int8"].find("failure")
    assert failure is not None
    assert "alert('x')" in (failure.text or "")
    assert "\x1b" not in (failure.text or "")
    assert cases["03_evaluation"].find("error") is not None  # skipped, but not for this machine's sake
    assert cases["04_fp4"].find("skipped") is not None


def test_the_table_of_the_terminal_has_a_line_for_each_lab_and_the_reasons_below() -> None:
    lines = result_table(REPORT).splitlines()
    assert re.fullmatch(r"01_fp8_rtn +passed +48 +1\.2 GB", lines[2])
    assert "02_int8 failed: cell 7 (check(result)): CheckFailed: not finite" in lines
    assert "tiny_problems, bf16: 0.940 ± 0.011 (n=500)" in lines
    assert lines[-1] == "tiny on vnni: 58 s in all, peak memory 1.2 GB"


def test_a_lab_that_left_something_out_says_what_and_why() -> None:
    lab = replace(PASSED, skipped=(Skip("the FP8 KV cache", "needs AVX-512"),))
    for text in (result_table(replace(REPORT, labs=(lab,))), Page(html(replace(REPORT, labs=(lab,)))).text):
        assert "the FP8 KV cache: needs AVX-512" in text
