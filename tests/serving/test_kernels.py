"""The engine's CPU kernels, timed by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit import hardware
from labkit.profiles import TINY
from labkit.serving import KernelTime, kernel_times


@pytest.mark.skipif(hardware.engine_build() != "cpu", reason="the kernels are those of vLLM's CPU build")
def test_each_number_of_tokens_gets_its_times_with_freed_memory_given_back_and_kept(tmp_path: Path) -> None:
    found = kernel_times(256, 128, [1, 64], engine=TINY.engine, log=tmp_path / "log")
    assert {keep: [one.tokens for one in times] for keep, times in found.items()} == {False: [1, 64], True: [1, 64]}
    assert all(
        ms > 0 for times in found.values() for one in times for ms in (one.bf16_ms, one.rounding_ms, one.int8_ms)
    )


def test_the_gain_counts_the_rounding() -> None:
    assert KernelTime(tokens=1, bf16_ms=3.0, rounding_ms=1.0, int8_ms=0.5).gain == 2.0
