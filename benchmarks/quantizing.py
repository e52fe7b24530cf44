"""Load, recipe, save: labkit as the labs call it against a bare llm-compressor script, on random-weight models."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import OFFLINE, SIDES, interleaved, timed
from benchmarks.results import Bar, Result, Run
from labkit.checkpoint import short_name
from labkit.errors import DataError
from labkit.manifest import file_sha256

DEADLINE_SECONDS = 300.0
CALIBRATION_ROWS = 64
MOST = 1.05
BARS = (Bar("wall_seconds", MOST), Bar("peak_bytes", MOST))


@dataclass(frozen=True)
class Quantize:
    """One pair of scripts on one model. shape: a name in sides/make_models.py; calibrated: whether rows are needed."""

    name: str
    what: str
    shape: str
    script: str
    variant: str
    pairs: int
    calibrated: bool

    def run(self, scratch: Path, pairs: int | None) -> Result:
        """Measures the pairs; raises DataError unless both sides write the same weights, byte for byte."""
        base, rows = scratch / self.shape, scratch / "rows.json"
        make = [sys.executable, str(SIDES / "make_models.py"), self.shape, str(base), str(rows)]
        timed(make, scratch / "make.log", deadline_seconds=DEADLINE_SECONDS, env=OFFLINE, cwd=scratch)
        workspace = scratch / "workspace"
        name = short_name(str(base))  # as labkit calls a model in this folder
        ours_final, theirs_final = workspace / "checkpoints" / f"{name}--{self.variant}", scratch / "theirs"

        def side(script: str, final: Path, *arguments: Path | str) -> Callable[[int], Run]:
            def measured(number: int) -> Run:
                shutil.rmtree(final, ignore_errors=True)
                command = [sys.executable, str(SIDES / f"{script}_{self.script}.py"), str(base), *map(str, arguments)]
                log = scratch / f"{script}-{number}.log"
                return timed(command, log, deadline_seconds=DEADLINE_SECONDS, env=OFFLINE, cwd=scratch)

            return measured

        our_rows: list[str] = [str(CALIBRATION_ROWS)] if self.calibrated else []
        their_rows: list[Path] = [rows] if self.calibrated else []
        ours, theirs = interleaved(
            side("labkit", ours_final, workspace, *our_rows),
            side("bare", theirs_final, theirs_final, *their_rows),
            pairs or self.pairs,
        )
        return Result(
            name=self.name,
            what=self.what,
            against="the same recipe in a bare llm-compressor script",
            bars=BARS,
            ours=tuple(ours),
            theirs=tuple(theirs),
            checked=same_weights(ours_final, theirs_final),
        )


def same_weights(ours: Path, theirs: Path) -> str:
    """Says that two checkpoints hold the same safetensors files; raises DataError if they don't."""
    files = [sorted(folder.glob("*.safetensors")) for folder in (ours, theirs)]
    digests = [[(file.name, file_sha256(file)) for file in found] for found in files]
    if not digests[0] or digests[0] != digests[1]:
        raise DataError(
            f"{ours} and {theirs} hold different weights",
            why="two quantizations that disagree can't be compared in speed",
            fix="look for a setting that one side has and the other has not",
        )
    return f"both sides wrote the same weights, byte for byte ({sum(f.stat().st_size for f in files[0]):,} bytes)"


FP8 = Quantize("fp8", "Quantize 0.4B to FP8", "llama-0.4b", "fp8", "fp8-dynamic", pairs=3, calibrated=False)
GPTQ = Quantize(
    "gptq",
    "Quantize 44M to INT8 with SmoothQuant and GPTQ",
    "llama-44m",
    "gptq",
    "int8-smoothquant-gptq",
    pairs=3,
    calibrated=True,
)
