"""Finds processes that should be gone by a marker in their environment: names and groups change, that does not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

MARKER = "LABKIT_TEST_MARKER"


def marked(marker: str) -> list[int]:
    """Live processes that were started with `LABKIT_TEST_MARKER=marker`, directly or through others; not this one."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue  # it ended while we looked, or is another user's
            if f"{MARKER}={marker}".encode() in environment.split(b"\0"):
                found.append(int(folder.name))
    return found


def wait_until(what: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether `what` becomes true within a generous time."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
