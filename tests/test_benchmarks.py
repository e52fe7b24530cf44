"""The arithmetic and the tables of the benchmarks, and that README and results.json say the same. Nothing is timed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks import (
    __main__,
    calibrating,
    curriculum,
    evaluating,
    gpu,
    measure,
    piping,
    quantizing,
    readme,
    serving,
    starting,
    table,
)
from benchmarks.registry import BENCHMARKS, GROWTHS
from benchmarks.results import RESULTS, Bar, Growth, Point, Report, Result, Run
from labkit.errors import DataError, ProcessFailed, UsageError
from labkit.hardware import stack_versions, this_machine
from labkit.pipeline.tools import Step
from labkit.profiles import TINY

from .models import make_model

PAIR = Result(
    name="pair",
    what="Do a thing",
    against="the thing",
    bars=(Bar("wall_seconds", 1.05), Bar("peak_bytes", 1.05)),
    ours=(Run(10.0, 1_100_000_000), Run(12.0, 1_000_000_000), Run(50.0, 1_000_000_000)),
    theirs=(Run(20.0, 1_000_000_000), Run(10.0, 900_000_000), Run(10.0, 500_000_000)),
    checked="both did the same",
    load=0.25,
)
ALONE = Result("alone", "Start", "", (Bar("wall_seconds", 0.3),), (Run(0.32, 9_000_000), Run(0.1, 8_000_000)))
GROWN = Growth("grown", "Grow", "lines", (Point(1000, 0.1), Point(10_000, 0.5), Point(100_000, 5.0)))
REPORT = Report("a machine", {"torch": "2"}, "2026-11-21T10:00:00.000+00:00", 61.0, (PAIR, ALONE), (GROWN,))


def test_a_full_run_with_a_failure_writes_no_result_and_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []

    def named(name: str, fails: bool = False) -> Callable[[Path, int | None], Result]:
        def run(scratch: Path, runs: int | None) -> Result:
            measured.append(name)
            if fails:
                raise DataError("the sides differ")
            return replace(ALONE, name=name)

        return run

    def grow(scratch: Path) -> Growth:
        measured.append("grown")
        return GROWN

    monkeypatch.setattr(__main__, "QUICK", ["a"])
    monkeypatch.setattr(__main__, "GROWTHS", {"grown": grow})
    monkeypatch.setattr(__main__, "SO_FAR", tmp_path / "build" / "so-far.json")
    monkeypatch.setattr(__main__, "QUICK_RUN", tmp_path / "build" / "benchmarks.json")
    monkeypatch.setattr(__main__, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(readme, "main", lambda: None)
    monkeypatch.setattr(__main__, "BENCHMARKS", {"a": named("a", fails=True), "b": named("b")})
    with pytest.raises(SystemExit):
        __main__.main(["--full", "--resume"])
    assert "there is no" in capsys.readouterr().err
    assert __main__.main(["--full"]) == 1
    assert "--full --resume" in capsys.readouterr().err
    assert not __main__.RESULTS.exists()
    assert __main__.main([]) == 1
    assert not __main__.QUICK_RUN.exists()
    monkeypatch.setattr(__main__, "BENCHMARKS", {"a": named("a"), "b": named("b")})
    with pytest.raises(SystemExit):
        __main__.main(["--resume"])
    assert __main__.main(["--full", "--resume"]) == 0
    assert measured == ["a", "b", "grown", "a", "a"]
    report = Report.from_json(__main__.RESULTS.read_text())
    assert [result.name for result in report.results] == ["a", "b"]
    assert report.sittings == 2
    assert "in 2 sittings" in readme.render(report)
    assert not __main__.SO_FAR.exists()
    assert not __main__.QUICK_RUN.exists()
    whole = __main__.RESULTS.read_bytes()
    assert __main__.main([]) == 0
    assert [result.name for result in Report.from_json(__main__.QUICK_RUN.read_text()).results] == ["a"]
    assert __main__.RESULTS.read_bytes() == whole, "a quick run does not take the place of a full one"


@pytest.mark.parametrize("part", ["machine", "versions", "labkit"])
def test_a_full_run_of_another_machine_stack_or_labkit_is_not_gone_on_with(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(__main__, "SO_FAR", tmp_path / "so-far.json")
    here = replace(REPORT, machine=this_machine().label, versions=stack_versions())
    __main__.SO_FAR.write_text(here.to_json())
    assert __main__.so_far() == here
    if part == "labkit":  # it was changed since
        os.utime(__main__.SO_FAR, (0, 0))
    else:
        __main__.SO_FAR.write_text(replace(here, **{part: getattr(REPORT, part)}).to_json())
    with pytest.raises(UsageError, match="another machine, stack or labkit"):
        __main__.so_far()


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_pairs() -> None:
    wall, peak = table.rows([PAIR])
    assert (wall.ours, wall.theirs) == (12.0, 10.0)
    assert wall.ratio == table.Ratio(1.2, 0.5, 5.0)
    assert peak.ratio == table.Ratio(1e9 / 9e8, 1.1, 2.0)


def test_two_series_of_different_length_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        table.ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("most", "verdict"), [(1.2, "met"), (1.19, "not met"), (None, "no bar")])
def test_a_bar_is_met_up_to_its_own_value(most: float | None, verdict: str) -> None:
    (row,) = table.rows([Result("pair", "", "", (Bar("wall_seconds", most),), PAIR.ours, PAIR.theirs)])
    assert row.verdict == verdict


def test_without_another_side_the_bar_holds_for_the_median_itself() -> None:
    (row,) = table.rows([ALONE])
    assert row.measured == pytest.approx(0.21)
    assert row.verdict == "met"
    assert table.cells(row) == ["Start: wall time", "0.21 s (2)", "–", "–", "≤ 0.30 s", "met"]


def test_the_terminal_shows_every_quantity_and_what_was_checked() -> None:
    lines = table.terminal([PAIR]).splitlines()
    assert [cell.strip() for cell in lines[2].split("  ") if cell.strip()] == [
        "Do a thing: wall time", "12.0 s (3)", "10.0 s (3)", "1.200 (0.500 to 5.000)", "≤ 1.05", "not met",
    ]  # fmt: skip
    assert "1.0 GB (3)" in lines[3]
    assert "900.0 MB (3)" in lines[3]
    assert lines[4] == "Do a thing: both did the same."


def test_results_survive_json() -> None:
    assert Report.from_json(REPORT.to_json()) == REPORT


def test_the_readme_says_it_is_generated_and_shows_table_machine_and_date() -> None:
    text = readme.render(REPORT)
    assert "Generated from results.json by `python -m benchmarks.readme`. Do not edit." in text.splitlines()[0]
    assert "| Do a thing: wall time | 12.0 s (3) | 10.0 s (3) | 1.200 (0.500 to 5.000) | ≤ 1.05 | not met |" in text
    assert "Measured on 2026-11-21 in 1 min 01 s on a machine; torch 2." in text
    assert "(`--only pair`). Against: the thing. Checked: both did the same. Load average before: 0.2." in text


def test_the_committed_readme_is_what_the_committed_results_become() -> None:
    report = Report.from_json(RESULTS.read_text())
    assert readme.README.read_text() == readme.render(report)
    assert {result.name for result in report.results} <= BENCHMARKS.keys()
    assert {growth.name for growth in report.growth} <= GROWTHS.keys()


def test_the_readme_names_what_its_run_did_not_measure() -> None:
    text = readme.render(replace(REPORT, results=()))
    assert f"not measured yet: {', '.join([*BENCHMARKS, *GROWTHS])}." in text
    everything = tuple(replace(ALONE, name=name) for name in BENCHMARKS)
    growths = tuple(replace(GROWN, name=name) for name in GROWTHS)
    assert "not measured yet" not in readme.render(replace(REPORT, results=everything, growth=growths))


def test_the_exponent_is_that_of_the_best_fit() -> None:
    squared = Growth("g", "Work", "things", tuple(Point(n, 3.0 * n**2, 50 * n) for n in (10, 100, 1000)))
    assert table.exponent(squared, "seconds") == pytest.approx(2.0)
    assert table.growth_rows([squared]) == [
        ["Work: wall time", "10, 100, 1,000 things", "300.0 s, 30000.0 s, 3000000.0 s", "2.00", "≤ 1.05", "not met"],
        ["Work: peak memory", "10, 100, 1,000 things", "500 B, 5.0 kB, 50.0 kB", "1.00", "≤ 1.05", "met"],
    ]
    assert len(table.growth_rows([GROWN])) == 1


def test_a_failed_side_is_an_error_with_its_logs_telling_lines(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match=r"exit code 1[\s\S]*ValueError: too hot"):
        measure.timed([sys.executable, "-c", "raise ValueError('too hot')"], tmp_path / "log", deadline_seconds=60)


def test_a_side_that_does_not_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProcessFailed, match="did not end within 0 s"):
        measure.timed([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", deadline_seconds=0)


def test_peak_memory_is_that_of_the_whole_process_tree(tmp_path: Path) -> None:
    child = "held = bytearray(200_000_000); import time; time.sleep(1)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    found = measure.timed([sys.executable, "-c", code], tmp_path / "log", deadline_seconds=60)
    assert 200e6 < found.peak_bytes < 400e6
    assert found.wall_seconds > 1


def test_pairs_take_turns() -> None:
    order: list[str] = []

    def side(name: str) -> measure.Callable[[int], Run]:
        return lambda number: order.append(f"{name}{number}") or Run(1.0, 1)  # type: ignore[func-returns-value]

    ours, theirs = measure.interleaved(side("A"), side("B"), 2)
    assert order == ["A0", "B0", "A1", "B1"]
    assert len(ours) == len(theirs) == 2


def test_tensors_that_differ_are_an_error_not_a_result(tmp_path: Path) -> None:
    for name, value in (("ours", 1.0), ("theirs", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"a.weight": torch.full((3,), value)}, tmp_path / name / "model.safetensors")
    with pytest.raises(DataError, match=r"different weights: a\.weight"):
        quantizing.same_tensors(tmp_path, tmp_path / "ours", tmp_path / "theirs")
    shutil.copy(tmp_path / "ours" / "model.safetensors", tmp_path / "theirs")
    assert "bit for bit" in quantizing.same_tensors(tmp_path, tmp_path / "ours", tmp_path / "theirs")


def test_a_checkpoint_that_loses_more_than_theirs_is_an_error(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    for name, factor in (("ours", 1.001), ("theirs", 1.1)):
        shutil.copytree(base, tmp_path / name)
        (tmp_path / name / "labkit_manifest.json").unlink(missing_ok=True)
        tensors = load_file(base / "model.safetensors")
        norms = {key: tensor * factor if "norm" in key else tensor for key, tensor in tensors.items()}
        save_file(norms, tmp_path / name / "model.safetensors", {"format": "pt"})
    assert "nats from the base model's" in quantizing.as_close(base, tmp_path / "ours", tmp_path / "theirs")
    with pytest.raises(DataError, match="nats a token"):
        quantizing.as_close(base, tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.parametrize(("seconds", "often"), [(0.1, 5), (29.9, 5), (30.0, 3), (299.0, 3), (300.0, 1)])
def test_what_takes_long_is_measured_less_often(seconds: float, often: int) -> None:
    ours, theirs = measure.interleaved(lambda _: Run(1.0), lambda _: Run(seconds), None)
    assert len(ours) == len(theirs) == often


def test_the_parts_of_a_pipelines_time_add_up_to_it() -> None:
    step = partial(Step, model="tiny", variant="")
    steps = [step("quantize", seconds=20.0, work_seconds=8.0), step("compare", seconds=3.0, work_seconds=1.0)]
    steps += [step("evaluate", seconds=lived, work_seconds=5.0, engine_start_seconds=18.0) for lived in (30.0, 28.0)]
    ours = {"wall_seconds": 90.0, "steps": [asdict(one) for one in steps]}
    theirs = {"work_seconds": 19.0, "engine_start_seconds": 25.0}
    said = piping.explained(ours, theirs, Run(50.0))
    assert "90 s: 19 s of quantizing and scoring, 36 s of 2 engine starts, 26 s of interpreters" in said
    assert "in 4 steps, 9 s of kfp" in said
    assert "50 s: 19 s of the same work, 25 s of one engine's start and its change of models, 6 s of the rest" in said


def test_nothing_is_written_by_a_run_of_a_part(tmp_path: Path) -> None:
    before = RESULTS.read_bytes() if RESULTS.exists() else b""
    command = [sys.executable, "-m", "benchmarks", "--only", "import", "--runs", "1", "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=measure.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "`import labkit`: wall time" in done.stdout
    assert len(Report.from_json((tmp_path / "out").read_text()).results[0].ours) == 1
    assert (RESULTS.read_bytes() if RESULTS.exists() else b"") == before


def test_a_run_of_labs_that_fails_says_which_and_why(tmp_path: Path) -> None:
    """The report is deleted with the benchmark's folder, and a log's last lines are of labs that passed."""
    with pytest.raises(ProcessFailed) as caught:
        measure.timed_labs(
            ["00", "--timeout", "1"], tmp_path / "workspace", tmp_path / "output", labs=1, deadline_seconds=120
        )
    assert "ended with exit code 1" in caught.value.what
    assert caught.value.why.startswith("00_start_here ")
    assert "1 s" in caught.value.why


def test_the_bars_are_those_that_were_agreed() -> None:
    """Held here so that a bar can't be moved to where a result happens to be."""
    assert [bar.most for bar in quantizing.FP8.bars] == [1.05, 1.05]
    assert [bar.most for bar in quantizing.SHARDS.bars] == [1.0, 0.35]
    assert [bar.most for bar in (*quantizing.GPTQ.bars, *quantizing.LARGE_GPTQ.bars)] == [1.0] * 4
    assert evaluating.BARS[0] == Bar("wall_seconds", 0.15)
    assert [bar.most for bar in (*curriculum.COLD_BARS, *curriculum.UNCHANGED_BARS)] == [0.6, None, 0.02]
    assert [bar.most for bar in (*serving.OVERALL_BARS, *serving.DECODE_BARS)] == [1 / 1.5, 0.5]
    assert (calibrating.BARS[0], calibrating.ROWS, calibrating.TOKENS) == (Bar("wall_seconds", 0.2), 512, 2048)
    assert (starting.IMPORT_SECONDS, starting.HELP_SECONDS) == (0.15, 0.3)
    assert (starting.LABS_SECONDS, starting.SETUP_SECONDS) == (300.0, 300.0)
    assert (len(evaluating.VARIANTS), TINY.main_task.limit) == (4, 500)


@pytest.mark.long
def test_the_gpu_script_takes_all_its_steps_on_a_cpu(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", str(page)]
    done = subprocess.run(command, cwd=measure.ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    written = page.read_text()
    for row in (
        "decode, 1 tokens: qkv",
        "prefill, 64 tokens: down",
        "FP8_DYNAMIC",
        "INT8 SmoothQuant+GPTQ",
        "tests marked",
    ):
        assert row in done.stdout
        assert row in written
    assert "a dry run on" in written


def test_without_a_gpu_the_gpu_script_says_how_to_try_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=measure.ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "torch sees no GPU here" in done.stderr
    assert "--dry-run" in done.stderr


def test_no_product_can_be_faster_than_its_roof() -> None:
    chip = gpu.Chip(bf16=100.0, fp8=200.0, memory=10.0)
    assert chip.roof_seconds(flop=400.0, moved_bytes=1.0, fp8=True) == 2.0
    assert chip.roof_seconds(flop=400.0, moved_bytes=1.0, fp8=False) == 4.0
    assert chip.roof_seconds(flop=1.0, moved_bytes=50.0, fp8=True) == 5.0
    assert next(c for p, c in gpu.CHIPS.items() if re.search(p, "NVIDIA H100 80GB HBM3")) == gpu.CHIPS["H100"]
    assert next(c for p, c in gpu.CHIPS.items() if re.search(p, "NVIDIA L40S")) == gpu.CHIPS["L40S"]
