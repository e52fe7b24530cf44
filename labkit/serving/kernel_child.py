"""What runs in the engine's interpreter: one matrix product by vLLM's CPU kernels, in BF16 and in INT8, timed.

Started by labkit.engine.run_script: no labkit. The job is {"shape": [outputs, inputs], "tokens": [...]}; the answer has
two lists, with freed memory given back and kept, of [tokens, BF16 ms, rounding ms, INT8 ms], medians.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS_EACH = 0.3
FEWEST = 3


def median_ms(work: Callable[[], object]) -> float:
    """The median time of a piece of work, in milliseconds, after one that warms up."""
    work()
    times: list[float] = []
    while len(times) < FEWEST or sum(times) < SECONDS_EACH:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def times_of(x: Any, bf16: Any, int8: Any) -> list[float]:
    """Milliseconds of the BF16 product of x [tokens, inputs], of rounding x, and of the INT8 product."""
    import torch
    from vllm import _custom_ops as ops

    rounded, scale, _ = ops.onednn_scaled_int8_quant(x, None, None, True)

    def multiply() -> None:
        out = torch.empty(len(x), int8.n, dtype=torch.bfloat16)  # a new one each time, as in a layer
        ops.onednn_scaled_mm(int8, rounded, out, scale, None, None, None)

    return [
        median_ms(lambda: ops.onednn_mm(bf16, x, None)),
        median_ms(lambda: ops.onednn_scaled_int8_quant(x, None, None, True)),
        median_ms(multiply),
    ]


def keep_freed_memory() -> None:
    """What MALLOC_MMAP_MAX_=0 and a high MALLOC_TRIM_THRESHOLD_ do for a process from its start on."""
    libc = ctypes.CDLL("libc.so.6")
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX in malloc.h
    if not (libc.mallopt(trim_threshold, 2**31 - 1) and libc.mallopt(mmap_max, 0)):
        raise OSError("the C library refuses these settings of its allocator")


def wait_for_silence(job: dict[str, Any]) -> None:
    """Says that it could begin, and returns when it may."""
    Path(job["ready"]).touch()
    while not Path(job["go"]).exists():
        time.sleep(0.02)


def main(job: dict[str, Any]) -> list[list[list[float]]]:
    import torch
    from vllm import _custom_ops as ops

    outputs, inputs = job["shape"]
    weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    int8 = ops.create_onednn_scaled_mm(weight.t(), torch.ones(outputs, 1), torch.bfloat16, True, False, 32)
    bf16 = ops.create_onednn_mm(weight.bfloat16().t(), 32)

    def timed() -> list[list[float]]:
        rows = {tokens: torch.randn(tokens, inputs, dtype=torch.bfloat16) for tokens in job["tokens"]}
        return [[tokens, *times_of(x, bf16, int8)] for tokens, x in rows.items()]

    wait_for_silence(job)
    given_back = timed()
    keep_freed_memory()
    return [given_back, timed()]


if "job" in globals():
    answer = main(globals()["job"])
