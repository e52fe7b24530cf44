"""What a GPU makes of 8 bits: matrix products, a whole quantize and its memory, and the tests that need one.

    python -m benchmarks.gpu                on a machine with one GPU (80 GB), under 8 minutes
    python -m benchmarks.gpu --dry-run      the same steps on a CPU with tiny shapes: that they work, not how fast

Needs torch, transformers, llmcompressor, compressed-tensors and labkit; for the tests marked `gpu` pytest too. The
table comes last. `--output FILE` keeps it as Markdown, with the machine and the versions.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.measure import OFFLINE, ROOT, SIDES, timed
from benchmarks.quantizing import as_close, same_tensors
from labkit.calibration import random_text_set
from labkit.checkpoint import load_tokenizer, short_name
from labkit.errors import DataError, LabError
from labkit.hardware import stack_versions, this_machine
from labkit.numerics import E4M3, dequantize, quantize, scale_for
from labkit.numerics.formats import Granularity
from labkit.ops import text
from labkit.tiny import TOKENIZER_FILES, WEIGHTS
from tools.tables import markdown_table

DEADLINE_SECONDS = 300.0
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
    """What is measured. products: name to (outputs, inputs) of a 7B model's linear layers, those that read the same
    input as one; decode and prefill: tokens at once; repeats: products between two looks at the clock.
    """

    products: dict[str, tuple[int, int]]
    decode: tuple[int, ...]
    prefill: tuple[int, ...]
    repeats: int
    config: dict[str, Any]
    fp8_blocks: int
    int8_blocks: int
    rows: int


QWEN = {
    "vocab_size": 152_064,
    "hidden_size": 3584,
    "intermediate_size": 18_944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
}
FULL = Sizes(
    {"qkv": (4608, 3584), "o": (3584, 3584), "gate and up": (37_888, 3584), "down": (3584, 18_944)},
    decode=(1, 16, 64),
    prefill=(2048, 8192),
    repeats=100,
    config=QWEN,
    fp8_blocks=28,
    int8_blocks=4,  # GPTQ's time grows with the blocks; four of them show the ratio within the eight minutes
    rows=64,
)
DRY = Sizes(
    {"qkv": (96, 64), "down": (64, 160)},
    decode=(1, 16),
    prefill=(64,),
    repeats=2,
    config={
        "vocab_size": 2560,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    },
    fp8_blocks=2,
    int8_blocks=1,
    rows=2,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if every part could be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with tiny shapes")
    parser.add_argument(
        "--pairs",
        type=int,
        choices=range(1, 6),
        default=2,
        help="quantizes by each side, of which the table has the mean",
    )
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
    rows = []
    for phase, counts in (("decode", sizes.decode), ("prefill", sizes.prefill)):
        for tokens in counts:
            for layer, (outputs, inputs) in sizes.products.items():
                rows.append(
                    _product(f"{phase}, {tokens:,} tokens: {layer}", tokens, outputs, inputs, device, chip, sizes)
                )
    return rows


def _product(
    what: str, tokens: int, outputs: int, inputs: int, device: str, chip: Chip | None, sizes: Sizes
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
    ours, theirs = seconds_each(fp8, sizes.repeats, device), seconds_each(bf16, sizes.repeats, device)
    flop = 2.0 * tokens * outputs * inputs
    roofs = []
    for each, fp8_bytes, measured in ((True, 1, ours), (False, 2, theirs)):
        moved = fp8_bytes * (outputs * inputs + tokens * inputs) + 2 * tokens * outputs
        roofs.append(NONE if chip is None else f"{chip.roof_seconds(flop, moved, each) / measured:.0%}")
    shown = [f"{each * 1e6:,.1f} µs ({flop / each / 1e12:,.1f} TFLOP/s)" for each in (ours, theirs)]
    return [what, *shown, f"{ours / theirs:.2f}", ", ".join(roofs)]


def _codes(x: Tensor, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """E4M3 codes and their float32 scales, as `torch._scaled_mm` wants them: no conversion is timed."""
    scale = scale_for(x, E4M3, granularity)
    return quantize(x, scale, E4M3), scale.float()


def seconds_each(work: Callable[[int], Any], repeats: int, device: str) -> float:
    """Median of five, of the mean over `repeats` calls. On a GPU they are one graph: no launch is waited for."""
    for i in range(3):
        work(i)
    if device != "cuda":
        return statistics.median(_clock(lambda: [work(i) for i in range(repeats)]) for _ in range(5)) / repeats
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(repeats):
            work(i)

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    replay()
    return statistics.median(_clock(replay) for _ in range(5)) / repeats


def _clock(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


# --- a whole quantize -------------------------------------------------------------------------------------------------

VARIANTS = {"fp8": "fp8-dynamic", "gptq": "int8-smoothquant-gptq"}
METHODS = {"fp8": "FP8_DYNAMIC", "gptq": "INT8 SmoothQuant+GPTQ"}


def quantize_a_model(folder: Path, sizes: Sizes, device: str, script: str, pairs: int) -> list[list[str]]:
    """The same recipe by labkit and by a bare llm-compressor script, as processes of their own, in turns.

    Two pairs go ABBA; wall time and memory are means.
    """
    blocks = sizes.fp8_blocks if script == "fp8" else sizes.int8_blocks
    base, workspace, theirs = folder / f"qwen-{blocks}", folder / "workspace", folder / "theirs"
    make_model(base, sizes, blocks, device)
    tokens = random_text_set(load_tokenizer(base), sizes.rows, 256).input_ids  # those that labkit's side draws itself
    (folder / "rows.json").write_text(json.dumps(tokens))
    calibrated = script == "gptq"
    arguments = {
        "labkit": [str(base), str(workspace), *([str(sizes.rows)] if calibrated else [])],
        "bare": [str(base), str(theirs), *([str(folder / "rows.json")] if calibrated else [])],
    }
    outputs = {"labkit": workspace, "bare": theirs}
    runs: dict[str, list[_Run]] = {"labkit": [], "bare": []}
    for pair in range(pairs):
        for side in ("labkit", "bare") if pair % 2 == 0 else ("bare", "labkit"):
            shutil.rmtree(outputs[side], ignore_errors=True)
            runs[side].append(_run(folder / side, f"{side}_{script}.py", arguments[side]))
    finals = (workspace / "checkpoints" / f"{short_name(str(base))}--{VARIANTS[script]}", theirs)
    if not calibrated:
        same_tensors(base, *finals)
    elif device == "cpu":  # on a GPU both sides run llm-compressor's own GPTQ
        as_close(base, *finals)
    parameters = sum(f.stat().st_size for f in base.glob("*.safetensors")) / 2e9
    what = f"{METHODS[script]}, {parameters:.2g}B parameters in {blocks} blocks (n = {pairs})"
    for path in (base, *outputs.values()):
        shutil.rmtree(path)
    wall, peak, left = (
        [statistics.mean(getattr(run, of) for run in runs[side]) for side in outputs]
        for of in ("wall_seconds", "peak_bytes", "left_bytes")
    )
    if left[0] > 0.01 * peak[0]:
        raise DataError(
            f"{what}: {text.size(left[0])} were left on the GPU after labkit's quantize", "it keeps a model"
        )
    return [
        [f"{what}: wall time", *map(text.duration, wall), f"{wall[0] / wall[1]:.2f}", NONE],
        [f"{what}: peak memory", *map(text.size, peak), f"{peak[0] / peak[1]:.2f}", NONE],
        [f"{what}: on the GPU afterwards", *(text.size(each) or "0 B" for each in left), NONE, NONE],
    ]


@dataclass(frozen=True)
class _Run:
    """One process: its seconds, and the bytes of the GPU's live tensors (of the process, where there is no GPU)."""

    wall_seconds: float
    peak_bytes: int
    left_bytes: int


def _run(record: Path, script: str, arguments: list[str]) -> _Run:
    command = [sys.executable, str(SIDES / "on_device.py"), str(record), str(SIDES / script), *arguments]
    run = timed(command, record.with_suffix(".log"), deadline_seconds=DEADLINE_SECONDS, env=OFFLINE, cwd=ROOT)
    of_gpu = json.loads(record.read_text())
    return _Run(run.wall_seconds, of_gpu["peak_bytes"] or run.peak_bytes or 0, of_gpu["left_bytes"])


def make_model(folder: Path, sizes: Sizes, blocks: int, device: str) -> None:
    """A random BF16 checkpoint in the shape of Qwen2.5-7B, with fewer blocks where asked; made where it is fast."""
    config = transformers.Qwen2Config(num_hidden_layers=blocks, **sizes.config)
    with torch.device(device):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    if device == "cuda":
        torch.cuda.empty_cache()
    for name in TOKENIZER_FILES:
        shutil.copyfile(WEIGHTS / name, folder / name)


def run_tests() -> list[list[str]]:
    """The tests marked `gpu`; on a CPU they skip themselves."""
    if importlib.util.find_spec("pytest") is None:
        return [["tests marked gpu", "pytest is not installed", NONE, NONE, NONE]]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False)
    if done.returncode != 0:
        raise RuntimeError("\n".join(done.stdout.splitlines()[-20:]))
    return [["tests marked gpu", done.stdout.strip().splitlines()[-1].strip("= "), NONE, NONE, NONE]]


if __name__ == "__main__":
    sys.exit(main())
