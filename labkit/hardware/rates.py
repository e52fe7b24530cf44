"""How fast this machine reads memory and multiplies: the two rates that decide what quantization can gain."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

READ_BYTES = 400_000_000  # far beyond any cache
ROWS, COLUMNS, OUTPUTS = 1024, 1024, 4096
REPEATS = 5


@dataclass(frozen=True)
class Rates:
    """Bytes read, and BF16 operations (multiplications and additions) done, in a second."""

    bytes_per_s: float
    flops_per_s: float


def measure_rates(device: str = "cpu") -> Rates:
    """Measures both with torch on a device ("cpu", "cuda"), in a few seconds; the best of five counts.

    The rates are what these two operations reach, below what a data sheet promises and close to what an engine sees.
    """
    import torch

    values = torch.ones(READ_BYTES // 4, device=device)
    left = torch.ones(ROWS, COLUMNS, dtype=torch.bfloat16, device=device)
    right = torch.ones(OUTPUTS, COLUMNS, dtype=torch.bfloat16, device=device)
    read = _best_seconds(lambda: values.sum().item())
    multiply = _best_seconds(lambda: (left @ right.T)[0, 0].item())  # .item() waits for a GPU
    return Rates(READ_BYTES / read, 2 * ROWS * COLUMNS * OUTPUTS / multiply)


def _best_seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(1 + REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times[1:])  # the first one warms up
