"""The explorers: their pictures say what labkit's numerics give, at every state that their controls can reach."""

from __future__ import annotations

import itertools
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from labkit import explorers, memory, numerics
from labkit.behaviour import Captured
from labkit.errors import UsageError
from labkit.explorers import Explorer, Slider, memory_planner, number_line, sample_size, smoothing

ROW = torch.randn(512, generator=torch.Generator().manual_seed(0))
OUTLIER, CHANNELS = 5, 48


def smoothing_example() -> Explorer:
    rng = torch.Generator().manual_seed(1)
    X, W = torch.randn(64, CHANNELS, generator=rng), torch.randn(32, CHANNELS, generator=rng)
    X[:, OUTLIER] *= 200
    return smoothing(Captured("layers.0.q_proj", X.abs().amax(0), X, 64), W, [OUTLIER], 0.8)


EXPLORERS = {
    "number line": lambda: number_line(ROW),
    "smoothing": smoothing_example,
    "memory planner": lambda: memory_planner({"7B": memory.QWEN_7B, "72B": memory.QWEN_72B}),
    "sample size": sample_size,
}


@pytest.mark.parametrize("name", EXPLORERS)
def test_every_corner_of_the_controls_has_a_picture_and_its_own_sentence(name: str) -> None:
    explorer = EXPLORERS[name]()
    controls = explorer.controls.values()
    ends = [(c.low, c.high) if isinstance(c, Slider) else {c.options[0], c.options[-1]} for c in controls]
    corners = [dict(zip(explorer.controls, values, strict=True)) for values in itertools.product(*ends)]
    said = {explorer.at(**state).description for state in corners}
    assert len(said) == len(corners)
    assert all(re.search(r"\d", sentence) and "nan" not in sentence for sentence in said)


def numbers_in(explorer: Explorer, pattern: str, **state: object) -> tuple[float, ...]:
    found = re.search(pattern, explorer.at(**state).description)
    assert found, explorer.at(**state).description
    return tuple(float(text.replace(",", "")) for text in found.groups())


@pytest.mark.parametrize("name", ["E4M3", "E5M2", "INT8", "E2M1"])
def test_the_usual_scale_is_that_of_round_to_nearest(name: str) -> None:
    fmt = next(f for f in numerics.FORMATS if f.name == name)
    expected = numerics.relative_error(ROW, numerics.round_to_nearest(ROW, fmt, "per-tensor"))
    (error,) = numbers_in(number_line(ROW), r"relative error ([\d.]+)\.", fmt=name)
    assert error == pytest.approx(expected, abs=5e-5)


def test_a_small_scale_clips_and_a_large_one_makes_zeros() -> None:
    pattern = r"([\d.]+)% of the weights are clipped, ([\d.]+)% become zero"
    clipped, _ = numbers_in(number_line(ROW), pattern, fmt="INT8", scale=1 / 8)
    assert clipped == pytest.approx(100 * float((ROW.abs() > ROW.abs().max() / 8).float().mean()), abs=1)
    _, zeros = numbers_in(number_line(ROW), pattern, fmt="INT8", scale=64)
    assert zeros == pytest.approx(100 * float((ROW.abs() < 64 * ROW.abs().max() / 255).float().mean()), abs=1)


def test_smoothing_moves_the_outlier_and_lowers_the_error() -> None:
    pattern = r"is ([\d,]+) times .* and ([\d,.]+) times after; .* goes from ([\d.]+) to ([\d.]+)\."
    before, after, plain, smoothed = numbers_in(smoothing_example(), pattern, alpha=0.5)
    assert before > 100 > 20 > after
    assert smoothed < plain / 2
    *_, plain, untouched = numbers_in(smoothing_example(), pattern, alpha=0.5, share="channel")
    assert untouched == pytest.approx(plain, rel=0.5), "a scale for each channel needs no smoothing"


def test_the_planner_counts_as_the_memory_arithmetic_does() -> None:
    state = {"scheme": "w4a16", "cache": "fp8", "batch": 8, "sequence": 1024}
    pattern = r"([\d.]+) GB of weights, ([\d.]+) GB of fp8 KV cache"
    weights, cache = numbers_in(memory_planner({"7B": memory.QWEN_7B}), pattern, **state)
    assert weights == pytest.approx(memory.weight_bytes(memory.QWEN_7B, "w4a16").total / 1e9, abs=0.005)
    assert cache == pytest.approx(memory.kv_cache_bytes(memory.QWEN_7B, 8, 1024, 1) / 1e9, abs=0.005)


def test_the_planner_takes_what_the_installed_vllm_takes_of_a_gpu() -> None:
    (folder,) = find_spec("vllm").submodule_search_locations  # type: ignore[union-attr, misc]
    source = (Path(folder) / "config" / "cache.py").read_text(encoding="utf-8")
    assert f"gpu_memory_utilization: float = Field(default={explorers.USABLE:g}," in source


def test_the_planner_says_what_fits_and_what_waits() -> None:
    said = memory_planner({"7B": memory.QWEN_7B}).at
    assert "does not fit; 2 such GPUs" in said(scheme="bf16", gpu="T4").description
    assert "the others wait" in said(scheme="bf16", gpu="L4, A10", batch=128).description
    assert re.search(r"a cache for \d+ such requests at once\.", said(gpu="H200", batch=32).description)
    assert "on this machine (48 GB)" in memory_planner({"7B": memory.QWEN_7B}, here=48).at().description


def test_the_sample_size_explorer_starts_from_what_was_measured() -> None:
    begin = "A loss of 1 point from 60.0%, the models differing on 10.0% of the rows"
    assert sample_size(accuracy=0.6, differing=0.1).at().description.startswith(begin)
    assert sample_size(accuracy=1.0, differing=0.0).at(), "a perfect score that nothing changed is at the sliders' ends"
    nothing = sample_size(accuracy=0.996, differing=0.0)
    described = {nothing.at(differing=share).description for share in (nothing.controls["differing"].value, 1.5)}
    assert len(described) == 2, "the first step of the slider shows"


def test_a_row_of_zeros_is_an_error_that_says_so() -> None:
    with pytest.raises(UsageError, match="all values are zero"):
        number_line(torch.zeros(4))
