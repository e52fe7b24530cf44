"""Ctrl-C, SIGTERM and SIGHUP as a flag, so that a run can stop in order wherever it is."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}


class StopSignals:
    """While the `with` block runs, `received` is the first signal that asked to stop (0: none) and `name` its name."""

    def __init__(self) -> None:
        self.received = 0

    @property
    def name(self) -> str:
        return NAMES[signal.Signals(self.received)] if self.received else ""

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or number

    def __enter__(self) -> StopSignals:
        heeded = [number for number in NAMES if signal.getsignal(number) != signal.SIG_IGN]  # `nohup` ignores SIGHUP
        self._before = {number: signal.signal(number, self._note) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def exit_code(name: str) -> int:
    """128 + N for the signal of that name, as shells count."""
    return 128 + next(number for number, known in NAMES.items() if known == name)
