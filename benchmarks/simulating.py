"""Simulated layers against plain ones, lab 06's grid, and what LoRC holds in memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import OFFLINE, SIDES, timed
from benchmarks.results import Bar, Result, Run
from labkit.profiles import SPEED

DEADLINE_SECONDS = 600.0
SHAPE = (4096, 4096, 512)  # rows, columns, tokens
TURNS = 5
MOST_SLOWER = 3.0
GRID_SECONDS = 120.0
MOST_LAYERS = 4  # float32 copies of the largest layer: W - Ŵ, its Gram matrix, and room for the decomposition


def _answer(script: str, scratch: Path, *arguments: Any) -> Any:
    """What a side's script wrote into its result file."""
    result = scratch / "result.json"
    command = [sys.executable, str(SIDES / script), *map(str, arguments), str(result)]
    timed(command, scratch / f"{script}.log", deadline_seconds=DEADLINE_SECONDS, env=OFFLINE, cwd=scratch)
    return json.loads(result.read_text())


def run_layer(scratch: Path, runs: int | None) -> Result:
    """A layer with FP4 weights, FP8 activations and LoRC, against the same layer in BF16, in turns in one process."""
    found = _answer("simulated_layer.py", scratch, *SHAPE, runs or TURNS)
    rows, columns, tokens = SHAPE
    return Result(
        name="simulated",
        what=f"Simulated layer [{rows:,}, {columns:,}], {tokens} tokens",
        against="the BF16 layer, in turns in one process",
        bars=(Bar("wall_seconds", MOST_SLOWER),),
        ours=tuple(Run(round(seconds, 5)) for seconds in found["simulated"]),
        theirs=tuple(Run(round(seconds, 5)) for seconds in found["plain"]),
    )


def run_grid(scratch: Path, runs: int | None) -> Result:
    """All 14 schemes of ZeroQuant-FP by both methods of rounding on the embedded model, scored as lab 06 does it."""
    answers = [_answer("grid.py", scratch, scratch / f"workspace-{run}") for run in range(runs or 1)]
    return Result(
        name="grid",
        what="Lab 06's grid on `tiny`",
        against="",
        bars=(Bar("wall_seconds", GRID_SECONDS), Bar("peak_bytes")),
        ours=tuple(Run(round(answer["seconds"], 1), answer["peak_bytes"]) for answer in answers),
        checked=f"{answers[0]['scored']} schemes were scored, on text and half of them on problems",
    )


def run_lorc(scratch: Path, runs: int | None) -> Result:
    """LoRC on the speed model."""
    base, rows = scratch / "base", scratch / "rows.json"
    make = [sys.executable, str(SIDES / "make_models.py"), SPEED, str(base), str(rows), "64"]
    timed(make, scratch / "make.log", deadline_seconds=DEADLINE_SECONDS, env=OFFLINE, cwd=scratch)
    answers = [_answer("lorc_memory.py", scratch, base) for _ in range(runs or 1)]
    worst = max(answer["more_bytes"] for answer in answers)
    layer, model = answers[0]["layer_bytes"], answers[0]["model_bytes"]
    return Result(
        name="lorc",
        what="LoRC of rank 8 on 0.4B",
        against="",
        bars=(Bar("wall_seconds"), Bar("peak_bytes", MOST_LAYERS * layer)),
        ours=tuple(Run(round(answer["seconds"], 3), answer["more_bytes"]) for answer in answers),
        checked=f"the process grew by {worst:,} bytes; in float32 the largest layer has {layer:,}, all have {model:,}",
    )
