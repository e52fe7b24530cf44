"""What runs in the engine's interpreter: one linear layer as vLLM's CPU engine runs it, in BF16 and in INT8, timed.

Started by labkit.engine.run_script: no labkit. The job is {"shape": [outputs, inputs], "tokens": [...]}; the answer has
two lists, with freed memory given back and kept, of [tokens, BF16 ms, INT8 ms, rounding ms], medians. INT8's time has
the rounding of its input in it; the last is that by itself, or null where the kernel does both in one.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Layer = Callable[[Any], Any]  # of an input [tokens, inputs] in BF16

SECONDS_EACH = 0.3
FEWEST = 3


def medians_ms(x: Any, layers: Sequence[Layer | None]) -> list[float | None]:
    """The median time of each layer (the first is one) on x, in milliseconds, after one that warms up; None for none.

    They run by turns, as two cores of a shared machine may be twice as fast a second later.
    """
    times: list[list[float]] = [[] for _ in layers]
    for layer in layers:
        if layer:
            layer(x)
    while len(times[0]) < FEWEST or sum(map(sum, times)) < SECONDS_EACH * len(layers):
        for layer, taken in zip(layers, times, strict=True):
            if layer:
                began = time.perf_counter()
                layer(x)
                taken.append(time.perf_counter() - began)
    return [statistics.median(taken) * 1e3 if taken else None for taken in times]


def bf16_layer(weight: Any) -> Layer:
    """A layer with a weight [outputs, inputs], by the kernel that the engine takes on this processor."""
    import torch
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    layer: Any = torch.nn.Module()
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    return lambda x: layer.cpu_linear(x, layer.weight, None)


def int8_layer(codes: Any, scales: Any) -> tuple[Layer, Layer | None]:
    """The same in INT8 W8A8, dynamic per token, of codes [outputs, inputs] and scales [outputs, 1]; and its rounding.

    Where the processor has AMX that is another kernel than elsewhere, and it rounds its input itself: None then.
    """
    import torch
    from vllm import _custom_ops as ops
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel
    from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import Int8ScaledMMLinearLayerConfig

    layer: Any = torch.nn.Module()
    layer.weight = torch.nn.Parameter(codes, requires_grad=False)
    layer.weight_scale = torch.nn.Parameter(scales, requires_grad=False)
    layer.input_scale = layer.input_zero_point = layer.azp_adj = layer.bias = None
    layer.logical_widths = [len(codes)]
    scheme = Int8ScaledMMLinearLayerConfig(is_static_input_scheme=False, is_channelwise=True, input_symmetric=True)
    kernel = CPUInt8ScaledMMLinearKernel(
        scheme, ["weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj"]
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # as in the engine: oneDNN's kernel takes its output's type from there
    try:
        kernel.process_weights_after_loading(layer)
    finally:
        torch.set_default_dtype(before)
    rounds_before = hasattr(kernel, "dnnl_handler")
    rounding = (lambda x: ops.onednn_scaled_int8_quant(x, None, None, True)) if rounds_before else None
    return lambda x: kernel.apply_weights(layer, x), rounding


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


def main(job: dict[str, Any]) -> list[list[list[float | None]]]:
    import torch

    outputs, inputs = job["shape"]
    codes = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    bf16 = bf16_layer(codes.bfloat16())
    int8, rounding = int8_layer(codes, torch.ones(outputs, 1))
    rows = {tokens: torch.randn(tokens, inputs, dtype=torch.bfloat16) for tokens in job["tokens"]}

    def timed() -> list[list[float | None]]:
        return [[tokens, *medians_ms(x, (bf16, int8, rounding))] for tokens, x in rows.items()]

    wait_for_silence(job)
    given_back = timed()
    keep_freed_memory()
    return [given_back, timed()]


if "job" in globals():
    answer = main(globals()["job"])
