"""How cost grows with size: the same work at several sizes, and the power of the size that its time follows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import OFFLINE, SIDES, timed
from benchmarks.quantizing import make_model
from benchmarks.results import Growth, Point

DEADLINE_SECONDS = 1800.0
FP8_SHAPES = {"llama-0.1b": 0, "llama-0.4b": 0, "llama-1.5b": 0}
INT8_SHAPES = {"llama-11m": 16, "llama-44m": 16, "llama-0.1b": 16}  # with how many rows of 256 tokens
SAMPLES = (100, 1000, 10_000)
LINES = (1000, 10_000, 100_000)
LABS = (10, 50, 200)


def run_fp8(scratch: Path) -> Growth:
    return _quantized("growth-fp8", "Quantize to FP8, a shard at a time", "fp8-shards", FP8_SHAPES, scratch)


def run_int8(scratch: Path) -> Growth:
    return _quantized("growth-int8", "Quantize to INT8 with SmoothQuant and GPTQ", "gptq", INT8_SHAPES, scratch)


def _quantized(name: str, what: str, method: str, shapes: dict[str, int], scratch: Path) -> Growth:
    """Loading and saving included, imports not; memory is what was added to them."""
    points = []
    for shape, rows in shapes.items():
        base, _ = make_model(shape, scratch, rows)
        points.append(_point("growth_quantize.py", scratch, method, base, scratch / "workspace", rows))
    return Growth(name, what, "parameters", tuple(points))


def run_evaluation(scratch: Path) -> Growth:
    """The embedded model on more and more problems; the engine is started for each, and its start is not counted."""
    points = [_point("growth_evaluation.py", scratch, scratch / "workspace", samples) for samples in SAMPLES]
    return Growth("growth-evaluation", "Evaluate a variant", "samples", tuple(points))


def run_ledger(scratch: Path) -> Growth:
    points = [_point("growth_ledger.py", scratch, scratch / f"{lines}.jsonl", lines) for lines in LINES]
    return Growth("growth-ledger", "Read a ledger and choose its newest lines", "lines", tuple(points))


def run_report(scratch: Path) -> Growth:
    points = [_point("growth_report.py", scratch, scratch / f"report-{labs}", labs) for labs in LABS]
    return Growth("growth-report", "Write a run's report", "labs", tuple(points))


def _point(script: str, scratch: Path, *words: Any) -> Point:
    """What a side's script wrote: {"size", "seconds", "peak_bytes"}."""
    answer = scratch / "answer.json"
    command = [sys.executable, str(SIDES / script), str(answer), *map(str, words)]
    timed(command, scratch / f"{script}.log", deadline_seconds=DEADLINE_SECONDS, env=OFFLINE, cwd=scratch)
    return Point(**json.loads(answer.read_text(encoding="utf-8")))
