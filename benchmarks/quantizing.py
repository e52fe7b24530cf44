"""Load, recipe, save: labkit as the labs call it against a bare llm-compressor script, on random-weight models."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Bar, Growth, Point, Result, Run, interleaved, ours, script
from labkit.checkpoint import different_tensors, short_name
from labkit.errors import DataError

BARS = (Bar("wall_seconds", 1.05), Bar("peak_bytes", 1.05))  # both sides' arithmetic is llm-compressor's own
SHARD_BARS = (Bar("wall_seconds", 1.0), Bar("peak_bytes", 0.35))
VARIANTS = {"fp8": "fp8-dynamic", "fp8_shards": "fp8-dynamic", "gptq": "int8-smoothquant-gptq"}
GROWN: dict[str, tuple[tuple[str, str, str], list[int], str]] = {  # a command's models and, to calibrate, rows
    "fp8_shards": (("llama-0.1b", "llama-0.4b", "llama-1.5b"), [], "Quantize to FP8, a shard at a time"),
    "gptq": (("llama-11m", "llama-44m", "llama-0.1b"), [16], "Quantize to INT8 with SmoothQuant and GPTQ"),
}


@dataclass(frozen=True)
class Quantize:
    """One pair of sides on one model. shape: a name in sides/ours.py, and command a function there; bare: a script;
    rows: how many of 256 tokens calibrate, 0 for none; pairs: None for as many as the time of one allows.
    """

    name: str
    what: str
    shape: str
    command: str
    bare: str
    bars: tuple[Bar, ...] = BARS
    rows: int = 0
    pairs: int | None = None

    def run(self, scratch: Path, pairs: int | None) -> list[Result]:
        """Measures the pairs; raises DataError unless both sides write the same tensors."""
        base, rows = make_model(self.shape, scratch, self.rows)
        finals = our_checkpoint(scratch / "workspace", base, self.command), scratch / "theirs"
        calibrated = bool(self.rows)

        def our_side() -> Run:
            shutil.rmtree(finals[0], ignore_errors=True)
            return ours(self.command, scratch, base, scratch / "workspace", *[self.rows] * calibrated)[0]

        def their_side() -> Run:
            shutil.rmtree(finals[1], ignore_errors=True)
            return script(self.bare, scratch, base, finals[1], *[rows] * calibrated)

        runs = interleaved(our_side, their_side, pairs or self.pairs)
        against = "the same recipe in a bare llm-compressor script"
        return [Result(self.name, self.what, against, self.bars, *runs, checked=same_tensors(*finals))]


def make_model(shape: str, scratch: Path, rows: int = 0) -> tuple[Path, Path]:
    """A random model of sides/ours.py, not timed, and the file of its calibration rows."""
    base, rows_file = scratch / shape, scratch / f"{shape}.rows.json"
    ours("make_model", scratch, shape, base, rows_file, rows)
    return base, rows_file


def our_checkpoint(workspace: Path, base: Path, command: str) -> Path:
    """Where labkit's side puts what it makes of a model in a folder."""
    return workspace / "checkpoints" / f"{short_name(str(base))}--{VARIANTS[command]}"


def same_tensors(ours: Path, theirs: Path) -> str:
    """Says that two checkpoints hold the same tensors; raises DataError if they don't."""
    if different := different_tensors(ours, theirs):
        raise DataError(
            f"{ours} and {theirs} hold different weights: {', '.join(different[:3])}",
            why="two quantizations that disagree can't be compared in speed",
            fix="look for a setting that one side has and the other has not",
        )
    size = sum(path.stat().st_size for path in ours.glob("*.safetensors"))
    return f"both sides wrote the same tensors, bit for bit ({size:,} bytes)"


FP8 = Quantize("fp8", "Quantize 0.4B to FP8", "llama-0.4b", "fp8", "bare_fp8.py")
SHARDS = Quantize(
    "fp8-shards", "Quantize 1.5B to FP8, in shards of 500 MB", "llama-1.5b", "fp8_shards", "bare_fp8.py", SHARD_BARS
)
_INT8 = "to INT8 with SmoothQuant and GPTQ"
GPTQ = Quantize("gptq", f"Quantize 44M {_INT8}", "llama-44m", "gptq", "bare_gptq.py", rows=64, pairs=5)
LARGE_GPTQ = Quantize("gptq-0.4b", f"Quantize 0.4B {_INT8}", "llama-0.4b", "gptq", "bare_gptq.py", rows=16, pairs=1)


def grow(command: str, name: str, scratch: Path) -> Growth:
    """Loading and saving included, imports not; memory is what was added to them."""
    shapes, rows, what = GROWN[command]
    bases = [make_model(shape, scratch)[0] for shape in shapes]
    points = [Point(**ours(command, scratch, base, scratch / "workspace", *rows)[1]) for base in bases]
    return Growth(name, what, "parameters", tuple(points))
