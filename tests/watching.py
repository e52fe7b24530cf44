"""Watches a process and all its descendants while they run: what they listen on, and what their command lines say."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

import psutil

LOOK_SECONDS = 1.0


@dataclass
class Seen:
    """How often was looked, listeners in all and those that others can reach, and command lines that hold a secret."""

    looks: int = 0
    listeners: int = 0
    exposed: set[str] = field(default_factory=set)
    leaks: set[str] = field(default_factory=set)


@contextmanager
def watched(pid: int, secrets: Mapping[str, str]) -> Iterator[Seen]:
    """Looks every second until the block ends. secrets: what no command line may hold."""
    seen, over = Seen(), threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            _look(pid, secrets, seen)

    watching = threading.Thread(target=look, name="watching", daemon=True)
    watching.start()
    try:
        yield seen
    finally:
        over.set()
        watching.join()


def _look(pid: int, secrets: Mapping[str, str], seen: Seen) -> None:
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return
    seen.looks += 1
    for process in processes:
        try:
            line = " ".join(process.cmdline())
            found = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        except psutil.Error:  # it has ended
            continue
        seen.listeners += len(found)
        seen.exposed |= {f"{c.laddr} of {line[:80]}" for c in found if not ip_address(c.laddr.ip).is_loopback}
        seen.leaks |= {f"{name} in {line[:80]}" for name, secret in secrets.items() if secret in line}
