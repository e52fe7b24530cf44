"""Load, recipe, save: labkit as the labs call it against a bare llm-compressor script, on random-weight models."""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import OFFLINE, SIDES, interleaved, timed
from benchmarks.results import Bar, Result, Run
from labkit.checkpoint import different_tensors, short_name
from labkit.errors import DataError

DEADLINE_SECONDS = 900.0
MOST = 1.05  # of FP8 as lab 01 does it, whose arithmetic is llm-compressor's own
BARS = (Bar("wall_seconds", MOST), Bar("peak_bytes", MOST))
SHARD_BARS = (Bar("wall_seconds", 1.0), Bar("peak_bytes", 0.35))
GPTQ_BARS = (Bar("wall_seconds", 1.0), Bar("peak_bytes", 1.0))
MOST_FURTHER = 1.02  # how much further from the base model ours may be than theirs, in nats a token
SURE = 2.0  # standard errors of the mean over rows


@dataclass(frozen=True)
class Quantize:
    """One pair of scripts on one model. shape: a name in sides/make_models.py; ours, theirs: scripts of sides/;
    rows: how many of 256 tokens calibrate, 0 for none; pairs: None for as many as the time of one allows.
    """

    name: str
    what: str
    shape: str
    ours: str
    theirs: str
    variant: str
    bars: tuple[Bar, ...]
    judge: Callable[[Path, Path, Path], str]
    rows: int = 0
    pairs: int | None = None

    def run(self, scratch: Path, pairs: int | None) -> Result:
        """Measures the pairs; raises DataError unless both sides' checkpoints are as good as each other."""
        base, rows = make_model(self.shape, scratch, self.rows)
        workspace = scratch / "workspace"
        name = short_name(str(base))  # as labkit calls a model in this folder
        ours_final, theirs_final = workspace / "checkpoints" / f"{name}--{self.variant}", scratch / "theirs"

        def side(script: str, final: Path, *arguments: Path | str) -> Callable[[int], Run]:
            def measured(number: int) -> Run:
                shutil.rmtree(final, ignore_errors=True)
                command = [sys.executable, str(SIDES / f"{script}.py"), str(base), *map(str, arguments)]
                log = scratch / f"{script}-{number}.log"
                return timed(command, log, deadline_seconds=DEADLINE_SECONDS, env=OFFLINE, cwd=scratch)

            return measured

        ours, theirs = interleaved(
            side(self.ours, ours_final, workspace, *([str(self.rows)] if self.rows else [])),
            side(self.theirs, theirs_final, theirs_final, *([rows] if self.rows else [])),
            pairs or self.pairs,
        )
        return Result(
            name=self.name,
            what=self.what,
            against="the same recipe in a bare llm-compressor script",
            bars=self.bars,
            ours=tuple(ours),
            theirs=tuple(theirs),
            checked=self.judge(base, ours_final, theirs_final),
        )


def make_model(shape: str, scratch: Path, rows: int = 64) -> tuple[Path, Path]:
    """A random model of sides/make_models.py, not timed, and the file of its calibration rows."""
    base, rows_file = scratch / shape, scratch / f"{shape}.rows.json"
    command = [sys.executable, str(SIDES / "make_models.py"), shape, str(base), str(rows_file), str(rows)]
    timed(command, scratch / "make.log", deadline_seconds=DEADLINE_SECONDS, env=OFFLINE, cwd=scratch)
    return base, rows_file


def same_tensors(base: Path, ours: Path, theirs: Path) -> str:
    """Says that two checkpoints hold the same tensors; raises DataError if they don't."""
    if different := different_tensors(ours, theirs):
        raise DataError(
            f"{ours} and {theirs} hold different weights: {', '.join(different[:3])}",
            why="two quantizations that disagree can't be compared in speed",
            fix="look for a setting that one side has and the other has not",
        )
    size = sum(path.stat().st_size for path in ours.glob("*.safetensors"))
    return f"both sides wrote the same tensors, bit for bit ({size:,} bytes)"


def as_close(base: Path, ours: Path, theirs: Path) -> str:
    """Says how far each checkpoint's next tokens are from the base model's; raises DataError if ours are further.

    GPTQ's two orders of summing end with other codes for one weight in eight, so each row is lucky for one side or the
    other: ours are further if the rows, pair by pair, leave no doubt of it.
    """
    answer = ours.parent / "divergence.json"
    command = [sys.executable, str(SIDES / "divergence.py"), str(answer), str(base), str(ours), str(theirs)]
    log = ours.parent / "divergence.log"
    timed(command, log, deadline_seconds=DEADLINE_SECONDS, env=OFFLINE, cwd=ours.parent)
    by_row = json.loads(answer.read_text(encoding="utf-8"))
    mine, other = map(statistics.mean, by_row)
    further = [ours - MOST_FURTHER * theirs for ours, theirs in zip(*by_row, strict=True)]
    if not statistics.mean(further) <= SURE * statistics.stdev(further) / math.sqrt(len(further)):
        raise DataError(
            f"{ours} is {mine:.3g} nats a token from {base}, and {theirs} {other:.3g}",
            why="a quantization that loses more has not done the same work",
            fix="look at what labkit/faster changes",
        )
    return (
        f"next-token distributions {mine:.3g} nats from the base model's, theirs {other:.3g}, on {len(further)} rows "
        "that neither saw"
    )


FP8 = Quantize("fp8", "Quantize 0.4B to FP8", "llama-0.4b", "labkit_fp8", "bare_fp8", "fp8-dynamic", BARS, same_tensors)
SHARDS = Quantize(
    "fp8-shards",
    "Quantize 1.5B to FP8, in shards of 500 MB",
    "llama-1.5b",
    "labkit_fp8_shards",
    "bare_fp8",
    "fp8-dynamic",
    SHARD_BARS,
    same_tensors,
)
GPTQ = Quantize(
    "gptq",
    "Quantize 44M to INT8 with SmoothQuant and GPTQ",
    "llama-44m",
    "labkit_gptq",
    "bare_gptq",
    "int8-smoothquant-gptq",
    GPTQ_BARS,
    as_close,
    rows=64,
    pairs=5,
)
LARGE_GPTQ = Quantize(
    "gptq-0.4b",
    "Quantize 0.4B to INT8 with SmoothQuant and GPTQ",
    "llama-0.4b",
    "labkit_gptq",
    "bare_gptq",
    "int8-smoothquant-gptq",
    GPTQ_BARS,
    as_close,
    rows=16,
    pairs=1,
)
