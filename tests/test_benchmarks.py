"""The arithmetic and the tables of the benchmarks, and that README and results.json say the same. Nothing is timed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import __main__, evaluating, measure, quantizing, running, serving, table
from benchmarks.measure import RESULTS, ROOT, Bar, Growth, Point, Report, Result, Run
from labkit.errors import DataError, ProcessFailed
from labkit.hardware import stack_versions, this_machine
from labkit.profiles import TINY

PAIR = Result(
    name="pair",
    what="Do a thing",
    against="the thing",
    bars=(Bar("wall_seconds", 1.05), Bar("peak_bytes", 1.05)),
    ours=(Run(10.0, 1_100_000_000), Run(12.0, 1_000_000_000), Run(50.0, 1_000_000_000)),
    theirs=(Run(20.0, 1_000_000_000), Run(10.0, 900_000_000), Run(10.0, 500_000_000)),
    checked="both did the same",
    load=0.25,
    date="2026-11-21",
)
ALONE = Result("alone", "Start", "", (Bar("wall_seconds", 0.3),), (Run(0.32, 9_000_000), Run(0.1, 8_000_000)))
GROWN = Growth("grown", "Grow", "lines", (Point(1000, 0.1), Point(10_000, 0.5), Point(100_000, 5.0)))
REPORT = Report("a machine", {"torch": "2"}, (PAIR, ALONE), (GROWN,))
CELLS = ["Do a thing: wall time", "12.0 s (3)", "10.0 s (3)", "1.200 (0.500 to 5.000)", "≤ 1.05", "not met"]


# --- from runs to tables ----------------------------------------------------------------------------------------------


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_pairs() -> None:
    peak = ["Do a thing: peak memory", "1.0 GB (3)", "900.0 MB (3)", "1.111 (1.100 to 2.000)", "≤ 1.05", "not met"]
    assert table.rows([PAIR]) == [CELLS, peak]
    with pytest.raises(ValueError, match="shorter"):
        table.rows([replace(PAIR, theirs=PAIR.theirs[1:])])


@pytest.mark.parametrize(("most", "verdict"), [(1.2, "met"), (1.19, "not met"), (None, "no bar")])
def test_a_bar_is_met_up_to_its_own_value(most: float | None, verdict: str) -> None:
    (row,) = table.rows([replace(PAIR, bars=(Bar("wall_seconds", most),))])
    assert row[-1] == verdict


def test_without_another_side_the_bar_holds_for_the_median_itself() -> None:
    assert table.rows([ALONE]) == [["Start: wall time", "0.21 s (2)", "–", "–", "≤ 0.30 s", "met"]]


def test_the_exponent_is_that_of_the_best_fit() -> None:
    squared = Growth("g", "Work", "things", tuple(Point(n, 3.0 * n**2, 50 * n) for n in (10, 100, 1000)))
    assert table.growth_rows([squared]) == [
        ["Work: wall time", "10, 100, 1,000 things", "300.0 s, 30000.0 s, 3000000.0 s", "2.00", "≤ 1.05", "not met"],
        ["Work: peak memory", "10, 100, 1,000 things", "500 B, 5.0 kB, 50.0 kB", "1.00", "≤ 1.05", "met"],
    ]
    assert len(table.growth_rows([GROWN])) == 1


def test_the_committed_readme_is_what_the_committed_results_become() -> None:
    report = Report.from_json(RESULTS.read_text())
    assert table.README.read_text() == table.readme(report, __main__.ALL)
    assert report.names <= set(__main__.ALL)


def test_a_result_that_is_kept_replaces_an_older_one_of_this_machine_and_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(__main__, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(table, "README", tmp_path / "README.md")
    here = replace(REPORT, machine=this_machine().label, versions=stack_versions())
    for other in (replace(here, machine="another"), replace(here, versions={"torch": "1"}), here):
        (tmp_path / "results.json").write_text(other.to_json())
        new = Report(here.machine, here.versions, (replace(PAIR, load=7.0),))
        __main__.keep(new)
        kept = Report.from_json((tmp_path / "results.json").read_text())
        assert kept == (replace(here, results=(*new.results, ALONE)) if other == here else new)
        assert (tmp_path / "README.md").read_text() == table.readme(kept, __main__.ALL)


# --- the instrument ---------------------------------------------------------------------------------------------------


def test_a_failed_side_is_an_error_with_its_logs_telling_lines(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match=r"exit code 1[\s\S]*ValueError: too hot"):
        measure.timed([sys.executable, "-c", "raise ValueError('too hot')"], tmp_path / "log")
    with pytest.raises(ProcessFailed, match="did not end within 0 s"):
        measure.timed([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", deadline_seconds=0)


def test_peak_memory_is_that_of_the_whole_process_tree(tmp_path: Path) -> None:
    child = "held = bytearray(200_000_000); import time; time.sleep(1)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    found = measure.timed([sys.executable, "-c", code], tmp_path / "log")
    assert found.peak_bytes is not None
    assert 200e6 < found.peak_bytes < 400e6
    assert found.wall_seconds > 1


@pytest.mark.parametrize(("seconds", "often"), [(0.1, 5), (29.9, 5), (30.0, 3), (299.0, 3), (300.0, 1)])
def test_pairs_take_turns_and_what_takes_long_is_measured_less_often(seconds: float, often: int) -> None:
    order: list[str] = []

    def side(name: str, seconds: float) -> Run:
        order.append(name)
        return Run(seconds)

    ours, theirs = measure.interleaved(lambda: side("A", 1.0), lambda: side("B", seconds), None)
    assert order == ["A", "B"] * often
    assert len(ours) == len(theirs) == often
    assert len(measure.interleaved(lambda: side("A", 1.0), lambda: side("B", seconds), 2)[0]) == 2


def test_tensors_that_differ_are_an_error_not_a_result(tmp_path: Path) -> None:
    for name, value in (("ours", 1.0), ("theirs", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"a.weight": torch.full((3,), value)}, tmp_path / name / "model.safetensors")
    with pytest.raises(DataError, match=r"different weights: a\.weight"):
        quantizing.same_tensors(tmp_path / "ours", tmp_path / "theirs")
    shutil.copy(tmp_path / "ours" / "model.safetensors", tmp_path / "theirs")
    assert "bit for bit" in quantizing.same_tensors(tmp_path / "ours", tmp_path / "theirs")


def test_a_run_of_a_part_says_what_it_found_and_writes_nothing_else(tmp_path: Path) -> None:
    before = RESULTS.read_bytes()
    command = [sys.executable, "-m", "benchmarks", "--only", "import", "growth-ledger", "--runs", "1", "--output"]
    done = subprocess.run([*command, str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "`import labkit`: wall time" in done.stdout
    found = Report.from_json((tmp_path / "out").read_text())
    assert len(found.results[0].ours) == 1
    assert [point.size for point in found.growth[0].points] == [1000, 10_000, 100_000]
    assert RESULTS.read_bytes() == before


def test_the_bars_are_those_that_were_agreed() -> None:
    """Held here so that a bar can't be moved to where a result happens to be."""
    for pair in (quantizing.FP8, quantizing.GPTQ, quantizing.LARGE_GPTQ):
        assert [bar.most for bar in pair.bars] == [1.05, 1.05]
    assert [bar.most for bar in quantizing.SHARDS.bars] == [1.0, 0.35]
    assert evaluating.BARS[0] == Bar("wall_seconds", 0.15)
    assert [bar.most for bar in (*serving.OVERALL_BARS, *serving.DECODE_BARS)] == [1 / 1.5, 0.5]
    assert [running.IMPORT_BARS[0].most, running.HELP_BARS[0].most, running.UNCHANGED_BARS[0].most] == [0.15, 0.3, 0.02]
    assert [running.FIRST_BARS[0].most, running.SETUP_BARS[0].most] == [300.0, 300.0]
    assert (len(evaluating.VARIANTS), TINY.main_task.limit) == (4, 500)


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_gpu_script_takes_all_its_steps_on_a_cpu(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for row in ("decode, 1 tokens: qkv", "prefill, 64 tokens: down", "FP8_DYNAMIC", "INT8 SmoothQuant", "tests marked"):
        assert row in done.stdout
        assert row in page.read_text()
    assert "a dry run on" in page.read_text()


def test_without_a_gpu_the_gpu_script_says_how_to_try_it() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "torch sees no GPU here" in done.stderr
    assert "--dry-run" in done.stderr
