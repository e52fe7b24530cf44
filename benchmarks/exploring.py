"""How quickly an explorer answers to a slider: from the new state to the picture that a front end is sent."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import torch

from benchmarks.results import Bar, Result, Run
from labkit import explorers, memory
from labkit.activations import Captured
from labkit.lab import frontend

NAME = "explorers"
MOST_SECONDS = 0.2
MOVES = 15
TOKENS, CHANNELS, OUTPUTS = 256, 3584, 3584  # a q_proj of the 7B model
OUTLIERS = [7, 2001]


def run(scratch: Path, runs: int | None) -> Result:
    """Moves the first slider of each explorer up and down; the slowest explorer is the result."""
    took = {name: _moves(explorer, runs or MOVES) for name, explorer in _explorers().items()}
    slowest = max(took, key=lambda name: statistics.median(took[name]))
    medians = ", ".join(f"{name} {1000 * statistics.median(times):.0f} ms" for name, times in took.items())
    return Result(
        NAME,
        f"The slowest explorer ({slowest}) answers to a slider, with data of a 7B model",
        "",
        (Bar("wall_seconds", MOST_SECONDS),),
        tuple(Run(round(seconds, 4)) for seconds in took[slowest]),
        checked=f"medians: {medians}",
    )


def _explorers() -> dict[str, explorers.Explorer]:
    rng = torch.Generator().manual_seed(0)
    X, W = torch.randn(TOKENS, CHANNELS, generator=rng), torch.randn(OUTPUTS, CHANNELS, generator=rng)
    X[:, OUTLIERS] *= 100
    captured = Captured("model.layers.0.self_attn.q_proj", X.abs().amax(0), X, TOKENS)
    return {
        "number line": explorers.number_line(W[0]),
        "smoothing": explorers.smoothing(captured, W, OUTLIERS, 0.8),
        "memory planner": explorers.memory_planner({"7B": memory.QWEN_7B, "72B": memory.QWEN_72B}),
        "sample size": explorers.sample_size(),
    }


def _moves(explorer: explorers.Explorer, moves: int) -> list[float]:
    name, slider = next((n, c) for n, c in explorer.controls.items() if isinstance(c, explorers.Slider))
    states = [slider.low, slider.value, slider.high]
    frontend.picture(explorer.at())  # matplotlib finds its fonts with the first
    took = []
    for move in range(moves):
        began = time.perf_counter()
        frontend.picture(explorer.at(**{name: states[move % len(states)]}))
        took.append(time.perf_counter() - began)
    return took
