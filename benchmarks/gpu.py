"""What a GPU makes of 8 bits: matrix products, a whole quantize and its memory, and the tests that need one.

    python -m benchmarks.gpu                on a machine with one GPU (80 GB), under 8 minutes
    python -m benchmarks.gpu --dry-run      the same steps on a CPU with tiny shapes: that they work, not how fast

Needs torch, transformers, llmcompressor, compressed-tensors and labkit; for the tests marked `gpu` pytest too. The
table comes last. `--output FILE` keeps it as Markdown, with the machine and the versions.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.measure import ROOT, SIDES, script
from benchmarks.quantizing import our_checkpoint, same_tensors
from labkit import memory
from labkit import ops as text
from labkit.checkpoint import load_tokenizer
from labkit.data import random_text_set
from labkit.errors import DataError, LabError
from labkit.hardware import stack_versions, this_machine
from labkit.numerics import E4M3, dequantize, quantize, scale_for
from labkit.numerics.formats import Granularity
from labkit.tiny import materialize_random
from tools.tables import markdown_table

TESTS_SECONDS = 300.0
BYTES_BETWEEN_REUSES = 256 * 2**20  # several times any GPU's cache: a decode step reads its weights from memory
HEADER = ("what", "labkit or FP8", "bare or BF16", "ratio", "of the roof: FP8, BF16")
NONE = "–"


@dataclass(frozen=True)
class Chip:
    """Dense peaks as NVIDIA's data sheets state them: FLOP/s in BF16 and FP8, and bytes/s of the memory."""

    bf16: float
    fp8: float
    memory: float

    def roof_seconds(self, flop: float, moved_bytes: float, fp8: bool) -> float:
        """No product can take less: its arithmetic at the peak, or its bytes at the memory's, whichever is longer."""
        return max(flop / (self.fp8 if fp8 else self.bf16), moved_bytes / self.memory)


CHIPS = {  # the first whose pattern is found in the GPU's name
    "H200": Chip(989e12, 1979e12, 4.8e12),
    "H100 PCIe": Chip(756e12, 1513e12, 2.0e12),
    "H100 NVL": Chip(835e12, 1671e12, 3.9e12),
    "H100": Chip(989e12, 1979e12, 3.35e12),
    "B200": Chip(2250e12, 4500e12, 8.0e12),
    "L40S": Chip(362e12, 733e12, 0.864e12),
    r"\bL4\b": Chip(121e12, 242e12, 0.3e12),
    "RTX 4090": Chip(165e12, 330e12, 1.008e12),
}


@dataclass(frozen=True)
class Sizes:
    """What is measured. products: name to (outputs, inputs) of linear layers, those that read the same input as one;
    decode and prefill: tokens at once; repeats: products between two looks at the clock; config: a Qwen2's vocabulary,
    hidden and intermediate size, heads, heads of keys; blocks: how many each command quantizes; rows: that calibrate.
    """

    products: dict[str, tuple[int, int]]
    decode: tuple[int, ...]
    prefill: tuple[int, ...]
    repeats: int
    config: tuple[int, int, int, int, int]
    blocks: dict[str, int]
    rows: int


SEVEN_BILLION = {"qkv": (4608, 3584), "o": (3584, 3584), "gate and up": (37_888, 3584), "down": (3584, 18_944)}
# GPTQ's time grows with the blocks; four of them show the ratio within the eight minutes.
BLOCKS = {"fp8": 28, "gptq": 4}
FULL = Sizes(SEVEN_BILLION, (1, 16, 64), (2048, 8192), 100, (152_064, 3584, 18_944, 28, 4), BLOCKS, rows=64)
SMALL = {"qkv": (96, 64), "down": (64, 160)}
DRY = Sizes(SMALL, (1, 16), (64,), 2, (2560, 64, 160, 4, 2), {"fp8": 2, "gptq": 1}, rows=2)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if every part could be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with tiny shapes")
    told = "quantizes by each side, of which the table has the mean"
    parser.add_argument("--pairs", type=int, choices=range(1, 6), default=2, help=told)
    parser.add_argument("--output", metavar="FILE", help="keep the table there, as Markdown")
    arguments = parser.parse_args(argv)
    if not arguments.dry_run and not torch.cuda.is_available():
        print("torch sees no GPU here. Try the steps on a CPU: python -m benchmarks.gpu --dry-run", file=sys.stderr)
        return 2
    sizes, device = (DRY, "cpu") if arguments.dry_run else (FULL, "cuda")
    began, rows, failures = time.monotonic(), [], []
    with tempfile.TemporaryDirectory(prefix="labkit-gpu-") as folder:
        parts: dict[str, Callable[[], list[list[str]]]] = {
            "matrix products": lambda: products(sizes, device),
            "FP8 of a model": lambda: quantize_a_model(Path(folder), sizes, device, "fp8", arguments.pairs),
            "INT8 of a model": lambda: quantize_a_model(Path(folder), sizes, device, "gptq", arguments.pairs),
            "tests": run_tests,
        }
        for name, part in parts.items():
            print(f"{name} ... ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
            try:
                rows += part()
            except (LabError, RuntimeError) as error:
                failures.append(f"{name}: {error}")
    where = torch.cuda.get_device_name() if device == "cuda" else f"no GPU, a dry run on {this_machine().label}"
    versions = ", ".join(f"{name} {version}" for name, version in stack_versions().items())
    said = f"Measured in {text.duration(time.monotonic() - began)} on {where}; {versions}."
    if arguments.output:
        page = [markdown_table(HEADER, rows), "", said, *(f"\nNot measured: {failure}" for failure in failures), ""]
        Path(arguments.output).write_text("\n".join(page), encoding="utf-8")
    print(text.table(HEADER, rows, right=(1, 2, 3, 4)), said, *(f"Not measured: {f}" for f in failures), sep="\n\n")
    return 1 if failures else 0


# --- matrix products --------------------------------------------------------------------------------------------------


def products(sizes: Sizes, device: str) -> list[list[str]]:
    """FP8 per channel and token by `torch._scaled_mm` against BF16, at the shapes of a 7B model."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    chip = next((chip for pattern, chip in CHIPS.items() if re.search(pattern, name)), None)
    tokens = [("decode", count) for count in sizes.decode] + [("prefill", count) for count in sizes.prefill]
    return [
        _product(f"{phase}, {count:,} tokens: {layer}", count, *shape, sizes.repeats, device, chip)
        for phase, count in tokens
        for layer, shape in sizes.products.items()
    ]


def _product(
    what: str, tokens: int, outputs: int, inputs: int, repeats: int, device: str, chip: Chip | None
) -> list[str]:
    torch.manual_seed(0)
    copies = max(1, BYTES_BETWEEN_REUSES // (outputs * inputs)) if device == "cuda" else 1
    weights = [torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16) for _ in range(copies)]
    x = torch.randn(tokens, inputs, device=device, dtype=torch.bfloat16)
    by_channel = [_codes(w, "per-channel") for w in weights]  # [outputs, inputs] and [outputs, 1] each
    x8, scale_x = _codes(x, "per-token")  # [tokens, inputs] and [tokens, 1]

    def fp8(i: int) -> Tensor:
        w8, scale_w = by_channel[i % copies]
        # fast accumulation: sums stay in the matrix units, where else float32 registers take them over now and then
        return torch._scaled_mm(x8, w8.t(), scale_x, scale_w.t(), out_dtype=torch.bfloat16, use_fast_accum=True)

    def bf16(i: int) -> Tensor:
        return x @ weights[i % copies].t()

    meant = dequantize(x8[:16], scale_x[:16]) @ dequantize(*by_channel[0]).t()
    error = float((fp8(0)[:16].float() - meant).norm() / meant.norm())
    if not error < 0.01:  # BF16 output rounds to 0.2%
        raise DataError(f"{what}: the FP8 product is {error:.1%} from what its factors are", "its time means nothing")
    seconds = [seconds_each(work, repeats, device) for work in (fp8, bf16)]
    flop, roofs = 2.0 * tokens * outputs * inputs, []
    for took, value_bytes in zip(seconds, (1, 2), strict=True):
        moved = value_bytes * (outputs * inputs + tokens * inputs) + 2 * tokens * outputs
        roofs.append(NONE if chip is None else f"{chip.roof_seconds(flop, moved, value_bytes == 1) / took:.0%}")
    shown = [f"{each * 1e6:,.1f} µs ({flop / each / 1e12:,.1f} TFLOP/s)" for each in seconds]
    return [what, *shown, f"{seconds[0] / seconds[1]:.2f}", ", ".join(roofs)]


def _codes(x: Tensor, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """E4M3 codes and their float32 scales, as `torch._scaled_mm` wants them: no conversion is timed."""
    scale = scale_for(x, E4M3, granularity)
    return quantize(x, scale, E4M3), scale.float()


def seconds_each(work: Callable[[int], Any], repeats: int, device: str) -> float:
    """Median of five, of the mean over `repeats` calls. On a GPU they are one graph: no launch is waited for."""

    def all_of_them() -> None:
        for i in range(repeats):
            work(i)

    for i in range(3):
        work(i)
    timed = all_of_them if device == "cpu" else _as_graph(all_of_them)
    return statistics.median(timeit.repeat(timed, number=1, repeat=5)) / repeats


def _as_graph(work: Callable[[], None]) -> Callable[[], None]:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    replay()
    return replay


# --- a whole quantize -------------------------------------------------------------------------------------------------

METHODS = {"fp8": "FP8_DYNAMIC", "gptq": "INT8 SmoothQuant+GPTQ"}


def quantize_a_model(folder: Path, sizes: Sizes, device: str, command: str, pairs: int) -> list[list[str]]:
    """The same recipe by labkit and by a bare llm-compressor script, as processes of their own, in turns.

    Two pairs go ABBA; wall time and memory are means.
    """
    blocks = sizes.blocks[command]
    base, workspace, theirs, rows = (folder / name for name in (f"qwen-{blocks}", "workspace", "theirs", "rows.json"))
    make_model(base, sizes, blocks, device)
    tokens = random_text_set(load_tokenizer(base), sizes.rows, 256).input_ids  # those that labkit's side draws itself
    rows.write_text(json.dumps(tokens))
    calibrated = command == "gptq"
    sides: dict[str, tuple[Path, list[Any]]] = {  # what each writes to, and its command
        "labkit": (
            workspace,
            ["ours.py", command, folder / "answer.json", base, workspace, *[sizes.rows] * calibrated],
        ),
        "bare": (theirs, [f"bare_{command}.py", base, theirs, *[rows] * calibrated]),
    }
    runs: dict[str, list[tuple[float, int, int]]] = {side: [] for side in sides}
    for pair in range(pairs):
        for side in sides if pair % 2 == 0 else reversed(sides):
            output, words = sides[side]
            shutil.rmtree(output, ignore_errors=True)
            runs[side].append(_run(folder, words))
    if not calibrated or device == "cpu":
        same_tensors(our_checkpoint(workspace, base, command), theirs)
    parameters = sum(f.stat().st_size for f in base.glob("*.safetensors")) / 2e9
    what = f"{METHODS[command]}, {parameters:.2g}B parameters in {blocks} blocks (n = {pairs})"
    for path in (base, workspace, theirs):
        shutil.rmtree(path)
    wall, peak, left = ([statistics.mean(run[i] for run in runs[side]) for side in sides] for i in range(3))
    if left[0] > 0.01 * peak[0]:
        told = f"{what}: {text.size(left[0])} were left on the GPU after labkit's quantize"
        raise DataError(told, "it keeps a model")
    return [
        [f"{what}: wall time", *map(text.duration, wall), f"{wall[0] / wall[1]:.2f}", NONE],
        [f"{what}: peak memory", *map(text.size, peak), f"{peak[0] / peak[1]:.2f}", NONE],
        [f"{what}: on the GPU afterwards", *(text.size(each) or "0 B" for each in left), NONE, NONE],
    ]


def _run(folder: Path, words: Sequence[Any]) -> tuple[float, int, int]:
    """Of one process: seconds, and the bytes that live tensors of the GPU had at most and at the end.

    Where there is no GPU, the first of them is of the process.
    """
    record = folder / "record.json"
    run = script("on_device.py", folder, record, SIDES / words[0], *words[1:])
    peak_bytes, left_bytes = json.loads(record.read_text())
    return run.wall_seconds, peak_bytes or run.peak_bytes or 0, left_bytes


def make_model(folder: Path, sizes: Sizes, blocks: int, device: str) -> None:
    """A random BF16 checkpoint in the shape of Qwen2.5-7B, with fewer blocks where asked; made where it is fast."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    shape: dict[str, Any] = dict(zip(names, sizes.config, strict=True))
    config = transformers.Qwen2Config(num_hidden_layers=blocks, max_position_embeddings=4096, **shape)
    with torch.device(device):
        materialize_random(folder, config, max_shard_size="50GB")
    memory.return_free_memory()


def run_tests() -> list[list[str]]:
    """The tests marked `gpu`; on a CPU they skip themselves."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TESTS_SECONDS, check=False)
    if done.returncode != 0:
        raise RuntimeError("\n".join((done.stdout + done.stderr).splitlines()[-20:]))
    return [["tests marked gpu", done.stdout.strip().splitlines()[-1].strip("= "), NONE, NONE, NONE]]


if __name__ == "__main__":
    sys.exit(main())
