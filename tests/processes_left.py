"""Finds processes that should be gone by a marker in their environment: names and groups change, that does not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

MARKER = "TEST_MARKER"


def engines() -> list[psutil.Process]:
    """Every engine of this process, and what it started: what multiprocessing's fork server or `spawn` has made."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        if _made_by(child, "forkserver"):
            found += child.children(recursive=True)
        elif _made_by(child, "spawn"):
            found += [child, *child.children(recursive=True)]
    return found


def marked(marker: str) -> list[int]:
    """Live processes that were started with `TEST_MARKER=marker`, directly or through others, and engines of this one,
    which may have an older server's environment; not this process itself, nor what it forks engines from.
    """
    ours = {p.pid for p in psutil.Process().children() if _made_by(p, "forkserver") or _made_by(p, "resource_tracker")}
    found = {engine.pid for engine in engines()}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) not in {os.getpid(), *ours}:
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue  # it ended while we looked, or is another user's
            if f"{MARKER}={marker}".encode() in environment.split(b"\0"):
                found.add(int(folder.name))
    return sorted(found)


def wait_until(what: Callable[[], bool], seconds: float = 60) -> bool:
    """Whether `what` becomes true within a generous time."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _made_by(process: psutil.Process, module: str) -> bool:
    try:
        return f"from multiprocessing.{module} " in " ".join(process.cmdline())
    except psutil.Error:
        return False
