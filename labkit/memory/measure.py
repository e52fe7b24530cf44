"""Bytes of memory, measured: of a forward, of this process, of a block of code; and giving a model's memory back."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from labkit.errors import LabError

SAMPLE_SECONDS = 0.02


def process_bytes() -> int:
    """Resident bytes of this process, from the kernel: threads ask often, and psutil would take three times as long."""
    with open("/proc/self/statm", "rb", buffering=0) as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def device_bytes() -> int:
    """Bytes that live tensors hold on this process's GPUs; 0 where it uses none."""
    torch = _cuda_torch()
    return sum(int(torch.cuda.memory_allocated(i)) for i in range(torch.cuda.device_count())) if torch else 0


def _cuda_torch() -> Any:
    """torch if this process has opened a GPU with it; asking must neither import torch nor open one."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_initialized() else None


@dataclass(frozen=True)
class Released:
    """Memory before and after: of the GPU if the model was there (`where` is "device"), else of the process."""

    before_bytes: int
    after_bytes: int
    where: Literal["process", "device"]

    @property
    def freed_bytes(self) -> int:
        return self.before_bytes - self.after_bytes


def release(model: Any) -> Released:
    """Gives a model's memory back, although the caller's names still point to it; the model can't be used afterwards.

    `del model` frees nothing while a notebook's cell, its output history or a library's session still holds the object.
    So the tensors are taken out of the object instead: each becomes a tensor on the meta device, which has a shape and
    no storage. Then Python's cycles are collected and the allocators return what they keep. A tensor that the caller
    took out of the model before keeps its own memory. A model just loaded from safetensors is hardly resident until it
    is used, and then there is little to give back.
    """
    offload = sys.modules.get("compressed_tensors.offload")
    if offload is not None:  # llm-compressor wraps each module's tensors in a cache that refuses the meta device
        offload.remove_dispatch(model)
    on_device = any(parameter.device.type == "cuda" for parameter in model.parameters())
    read = device_bytes if on_device else process_bytes
    before = read()
    _empty(model)
    return_free_memory()
    return Released(before, read(), "device" if on_device else "process")


def _empty(model: Any) -> None:
    """Moves every tensor to the meta device. A function of its own: a loop's last parameter must not stay in scope.

    One tensor left is enough to keep a whole checkpoint in memory, as tensors read from one file share its mapping.
    """
    import torch

    for parameter in model.parameters():
        parameter.grad = None
    torch.nn.Module.to(model, "meta")  # not model.to: libraries override it to refuse quantized or dispatched models


def return_free_memory() -> None:
    """Collects Python's garbage and makes glibc and torch return the memory that they keep for later.

    On a GPU that includes what cuBLAS works in, which torch counts as a live tensor: 33 MiB for each stream on an H100.
    """
    gc.collect()
    torch = _cuda_torch()
    if torch is not None:
        torch._C._cuda_clearCublasWorkspaces()  # has no public name; the next product makes them again
        torch.cuda.empty_cache()
    trim()


def trim() -> None:
    """Makes glibc return all free pages of its heaps; other C libraries return memory by themselves."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


class Peak:
    """Memory over a block, in bytes: read it after the block. GPUs count from their own allocator's record."""

    def __init__(self) -> None:
        self.before_bytes = process_bytes()
        self.peak_bytes = self.before_bytes
        self.device_peak_bytes = 0

    @property
    def grown_bytes(self) -> int:
        """How far the process grew above where it stood."""
        return self.peak_bytes - self.before_bytes


@contextmanager
def peak() -> Iterator[Peak]:
    """Measures the largest resident size of this process in a block, by a thread that looks every 20 ms.

    Blocks may nest for the process; for GPUs the innermost one counts, as torch keeps one record.
    """
    found, stop = Peak(), threading.Event()
    torch = _cuda_torch()
    if torch is not None:
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)

    def look() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            found.peak_bytes = max(found.peak_bytes, process_bytes())

    thread = threading.Thread(target=look, name="labkit-peak", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.peak_bytes = max(found.peak_bytes, process_bytes())
        stop.set()
        thread.join()
        torch = _cuda_torch()
        if torch is not None:
            found.device_peak_bytes = sum(
                int(torch.cuda.max_memory_allocated(index)) for index in range(torch.cuda.device_count())
            )


def measure_forward(model: Any, batch: int, sequence: int) -> int:
    """Peak bytes of the tensors that one forward makes, weights not counted: no gradients, no cache, random tokens.

    Counted in torch's allocator on either device: on a GPU from its own record, on a CPU by adding up the allocations
    and releases that the profiler reports. That is exact and the same on every run. The process's resident size would
    add what glibc keeps for later, the scratch memory of math libraries and whatever the process does meanwhile.
    """
    import torch

    device = next(model.parameters()).device
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (batch, sequence), generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        model(input_ids=tokens[:, :8], use_cache=False)  # whatever is made once and kept is made here
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            model(input_ids=tokens, use_cache=False)
            torch.cuda.synchronize(device)
            return int(torch.cuda.max_memory_allocated(device) - before)
        return _profiled_peak(lambda: model(input_ids=tokens, use_cache=False))


def _profiled_peak(run: Any) -> int:
    """The largest sum of live bytes that torch's CPU allocator handed out during a call."""
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler prints to the terminal at start and stop
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()  # kept until the profiler stops, as a caller keeps the logits
    del result
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    if not events:
        raise LabError(
            "torch's profiler reported no memory", why="the peak of a forward is unknown", fix="run on a GPU"
        )
    live = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        highest = max(highest, live)
    return highest
