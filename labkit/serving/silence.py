"""A child that measures says when it is about to, and begins once all other labs of the run stand still.

It starts beside them: while they stand they hold what they hold, and an engine that compiles may wait for a lock.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from labkit.quiet import quiet


class Silence:
    """ready: the file that says that the child could begin. go: the one that it waits for. Both lie beside its log."""

    def __init__(self, log: Path) -> None:
        self.ready, self.go = log.with_suffix(".ready"), log.with_suffix(".go")
        self._kept = ExitStack()

    def look(self) -> None:
        """Asks for silence, if the child is ready, and lets it begin; to be called again and again."""
        if self.ready.exists() and not self.go.exists():
            self._kept.enter_context(quiet())
            self.go.touch()

    def __enter__(self) -> Silence:
        self._remove()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._kept.close()
        self._remove()

    def _remove(self) -> None:
        for file in (self.ready, self.go):
            file.unlink(missing_ok=True)
