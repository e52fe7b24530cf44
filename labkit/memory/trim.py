"""Keeps a process small while it works: free memory that the C library holds back is returned as the process grows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from labkit.memory.measure import process_bytes, trim

LOOK_SECONDS = 0.1
STEP_BYTES = 64_000_000  # growth after which it is worth looking for holes


@contextmanager
def trimmed() -> Iterator[None]:
    """In the block, free memory goes back to the system each time that the process has grown by 64 MB.

    Quantizing frees large tensors and keeps smaller ones, layer after layer. Between those glibc's heap is left with
    holes that it keeps: up to 15% of the peak, and another share on every run. Trimming takes milliseconds.
    """
    stop = threading.Event()

    def look() -> None:
        last = process_bytes()
        while not stop.wait(LOOK_SECONDS):
            now = process_bytes()
            if now > last + STEP_BYTES:
                trim()
                last = process_bytes()
            else:
                last = min(last, now)

    thread = threading.Thread(target=look, name="labkit-trim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
