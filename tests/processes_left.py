"""Finds processes that should be gone by a marker in their environment: names and groups change, that does not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from labkit.engine import forked, forks

MARKER = "TEST_MARKER"  # not LABKIT_...: forks would have it without their server
CHILD, SERVER = str(forks.CHILD), str(forked.SERVER)


def words(process: psutil.Process) -> list[str]:
    """A process's command line; none if it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def fork_servers() -> set[int]:
    """The fork servers of this process, which wait for the next engine, and their guards; none of their forks."""
    found = set()
    for guard in psutil.Process().children():
        if SERVER in words(guard):
            oldest = min(guard.children(), key=lambda process: process.create_time(), default=None)
            found |= {guard.pid} | ({oldest.pid} if oldest and SERVER in words(oldest) else set())
    return found


def engines() -> list[psutil.Process]:
    """Every engine below this process, started anew or forked, and its guard; no fork server."""
    below, known = psutil.Process().children(recursive=True), fork_servers()
    return [process for process in below if {CHILD, SERVER} & set(words(process)) and process.pid not in known]


def marked(marker: str) -> list[int]:
    """Live processes that were started with `TEST_MARKER=marker`, directly or through others; not this one, nor
    its fork servers.
    """
    found, known = [], fork_servers()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) not in {os.getpid(), *known}:
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
