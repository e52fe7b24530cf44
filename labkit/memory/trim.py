"""Keeps a process small while it works: garbage and free memory are returned as the process grows."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from labkit.memory.measure import process_bytes, trim

LOOK_SECONDS = 0.1
STEP_BYTES = 16_000_000  # growth after which it is worth looking for holes
LOOKING_SHARE = 0.05  # of the time, at most: with a 7B model in memory one look was seen to take 56 ms


@contextmanager
def trimmed() -> Iterator[None]:
    """In the block, garbage and free memory go back to the system each time that the process has grown by 16 MB.

    Quantizing frees large tensors and keeps smaller ones, layer after layer. Between those glibc's heap is left with
    holes that it keeps: up to 10% of the peak when rounding, another share on every run. And a tensor in a reference
    cycle stays until Python looks for garbage, which it does seldom here (quiet_libraries): 7% of GPTQ's peak. Both
    take milliseconds, as Python looks only at objects made in the block: at those of all imported libraries, which
    are frozen meanwhile, it would take a third of a second each time. Where they take longer they are done less often.
    """
    stop = threading.Event()

    def look() -> None:
        last, rest = process_bytes(), LOOK_SECONDS
        while not stop.wait(rest):
            now, rest = process_bytes(), LOOK_SECONDS
            if now > last + STEP_BYTES:
                began = time.perf_counter()
                gc.collect()
                trim()
                rest = rest_seconds(time.perf_counter() - began)
                last = process_bytes()
            else:
                last = min(last, now)

    thread = threading.Thread(target=look, name="labkit-trim", daemon=True)
    gc.collect(1)  # what was just dropped must not be frozen
    gc.freeze()
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        gc.unfreeze()


def rest_seconds(looked: float) -> float:
    """How long to wait after a look that took so many seconds."""
    return max(LOOK_SECONDS, looked / LOOKING_SHARE)
