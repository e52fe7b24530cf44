"""The engine's CPU kernels, timed by themselves."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from labkit import hardware
from labkit.engine import run_script
from labkit.profiles import TINY
from labkit.serving import KernelTime, kernel_child, kernel_times

CPU_BUILD = pytest.mark.skipif(hardware.engine_build() != "cpu", reason="the kernels are those of vLLM's CPU build")


@CPU_BUILD
def test_each_number_of_tokens_gets_its_times_with_freed_memory_given_back_and_kept(tmp_path: Path) -> None:
    found = kernel_times(256, 128, [1, 64], engine=TINY.engine, log=tmp_path / "log")
    assert {keep: [one.tokens for one in times] for keep, times in found.items()} == {False: [1, 64], True: [1, 64]}
    assert all(ms > 0 for times in found.values() for one in times for ms in (one.bf16_ms, one.int8_ms))


@CPU_BUILD
def test_rounding_has_a_time_of_its_own_where_the_kernel_does_not_do_it_itself(tmp_path: Path) -> None:
    import torch

    (one,), _ = kernel_times(256, 128, [8], engine=TINY.engine, log=tmp_path / "log").values()
    if torch.cpu._is_amx_tile_supported():  # by what vLLM itself chooses
        assert one.rounding_ms is None
    else:
        assert one.rounding_ms is not None
        assert one.rounding_ms > 0


AGAINST_FLOAT32 = """
import runpy

import torch

child = runpy.run_path(job["child"])
torch.cpu._is_amx_tile_supported = lambda: job["amx"]
torch.manual_seed(0)
x = torch.randn(16, 128, dtype=torch.bfloat16)
codes, scales = torch.randint(-127, 128, (256, 128), dtype=torch.int8), torch.rand(256, 1) / 127
int8, rounding = child["int8_layer"](codes, scales)
step = x.float().abs().amax(dim=1, keepdim=True) / 127
product = (x.float() / step).round() * step @ (codes * scales).T
torch.testing.assert_close(int8(x).float(), product, atol=0.05, rtol=0.02)
bf16 = child["bf16_layer"](codes.bfloat16())
torch.testing.assert_close(bf16(x).float(), x.float() @ codes.float().T, atol=1.0, rtol=0.02)
answer = rounding is None
"""


@CPU_BUILD
@pytest.mark.parametrize("amx", [True, False])
def test_what_is_timed_is_the_layer(amx: bool, tmp_path: Path) -> None:
    """Against the product in float32 of what was rounded as vLLM rounds, by either of the engine's kernels."""
    import torch

    if amx and not torch.cpu._is_amx_tile_supported():
        pytest.skip("this processor has no AMX")
    rounds_itself = run_script(
        AGAINST_FLOAT32,
        {"child": kernel_child.__file__, "amx": amx},
        log=tmp_path / "log",
        engine=TINY.engine,
        offline=True,
        deadline_seconds=300,
    )
    assert rounds_itself == amx


def test_layers_are_timed_by_turns() -> None:
    order: list[str] = []
    first, second = (lambda x, name=name: order.append(name) or time.sleep(0.1) for name in ("first", "second"))
    one, two, none = kernel_child.medians_ms(None, (first, second, None))
    assert order[:6] == ["first", "second"] * 3, "a machine that became faster would be taken for a faster layer"
    assert min(one or 0, two or 0) >= 100
    assert none is None


def test_the_gain_counts_the_rounding() -> None:
    assert KernelTime(tokens=1, bf16_ms=3.0, int8_ms=1.5, rounding_ms=1.0).gain == 2.0
