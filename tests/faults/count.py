"""What the fault suite counts: faults that were injected, and what must stay at zero."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import clean_environment
from tests.processes_left import MARKER, marked, wait_until

GONE_SECONDS = 10.0  # by then every process of what was killed must have ended


@dataclass
class Counts:
    """The counts of one session."""

    injected: int = 0
    processes_left: int = 0
    bytes_lost: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, injected: int = 0, processes_left: int = 0, bytes_lost: int = 0) -> None:
        """Also from threads."""
        with self.lock:
            self.injected += injected
            self.processes_left += processes_left
            self.bytes_lost += bytes_lost

    def __str__(self) -> str:
        left = f"{self.processes_left:,} processes left, {self.bytes_lost:,} bytes lost"
        return f"{self.injected:,} faults injected, {left}"


@dataclass
class Fault:
    """One test's hand: it counts what is injected, and asserts that nothing is left and nothing is lost."""

    counts: Counts
    marker: str = field(default_factory=lambda: uuid.uuid4().hex)

    def beside(self) -> Fault:
        """A hand for a thread beside this one, whose processes are its own."""
        return Fault(self.counts)

    def environment(self, **more: str) -> dict[str, str]:
        """For what is started and then broken: its processes are known by this, whatever becomes of them."""
        return clean_environment(**{MARKER: self.marker}, **more)

    def injected(self, count: int = 1) -> None:
        self.counts.add(injected=count)

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Sends a signal; one that comes too late is none."""
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            self.injected()

    def nothing_left(self, seconds: float = GONE_SECONDS) -> None:
        """No process of this test runs any more, or will soon."""
        wait_until(lambda: marked(self.marker) == [], seconds)
        left = marked(self.marker)
        self.counts.add(processes_left=len(left))
        for pid in left:  # counted, and not left to the next test
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert left == [], f"{len(left)} processes still run {seconds:.0f} s after"

    @contextmanager
    def keeps(self, *paths: Path) -> Iterator[None]:
        """Every byte of these files, and of all below these folders, is the same after the block."""
        files = [path for place in paths for path in (place, *place.rglob("*")) if path.is_file()]
        before = {path: path.read_bytes() for path in files}
        yield
        lost = [path for path, data in before.items() if not path.is_file() or path.read_bytes() != data]
        self.counts.add(bytes_lost=sum(len(before[path]) for path in lost))
        assert lost == []
