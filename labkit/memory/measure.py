"""Bytes of memory, measured: of a forward, of this process, of a block of code; and giving a model's memory back."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

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

    Counted as torch makes and drops them, so it is the same on every machine and every run. What a kernel takes beside
    its tensors while it works is not in it: that differs from processor to processor (one without units for BF16
    converts whole weights), and the process's resident size would add what the C library keeps for later.
    """
    import torch

    device = next(model.parameters()).device
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (batch, sequence), generator=torch.Generator().manual_seed(0)).to(device)
    with torch.inference_mode():
        model(input_ids=tokens[:, :8], use_cache=False)  # whatever is made once and kept is made here
        with tensors_alive() as counted:
            result = model(input_ids=tokens, use_cache=False)  # kept until then, as a caller keeps the logits
    del result
    return counted.highest_bytes


class Counted:
    """Bytes of the tensors that operators of torch made in a block: those alive now, and at most."""

    live_bytes = highest_bytes = 0


@contextmanager
def tensors_alive() -> Iterator[Counted]:
    """Counts each operator's outputs in a block, by their storage: a view holds nothing, nor does a changed input."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    found, known = Counted(), set[int]()

    def dropped(key: int, size: int) -> None:
        known.discard(key)
        found.live_bytes -= size

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = {
                leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
            }
            result = function(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if not isinstance(leaf, torch.Tensor):
                    continue
                storage = leaf.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in known and key not in given:
                    known.add(key)
                    found.live_bytes += size
                    weakref.finalize(storage, dropped, key, size)
            found.highest_bytes = max(found.highest_bytes, found.live_bytes)
            return result

    with Counting():
        yield found
