"""Keeps a process small while it works: garbage and free memory are returned as the process grows."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from labkit.memory.measure import process_bytes, trim

LOOK_SECONDS = 0.1
STEP_BYTES = 16_000_000  # growth after which it is worth looking for holes


@contextmanager
def trimmed() -> Iterator[None]:
    """In the block, garbage and free memory go back to the system each time that the process has grown by 16 MB.

    Quantizing frees large tensors and keeps smaller ones, layer after layer. Between those glibc's heap is left with
    holes that it keeps: up to 10% of the peak when rounding, another share on every run. And a tensor in a reference
    cycle stays until Python looks for garbage, which it does seldom here (quiet_libraries): 7% of GPTQ's peak. Both
    take milliseconds, as Python looks only at objects made in the block: at those of all imported libraries, which
    are frozen meanwhile, it would take a third of a second each time.
    """
    stop = threading.Event()

    def look() -> None:
        last = process_bytes()
        while not stop.wait(LOOK_SECONDS):
            now = process_bytes()
            if now > last + STEP_BYTES:
                gc.collect()
                trim()
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
