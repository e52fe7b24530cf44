"""Signals that ask a run to stop are noted, not raised, and what was there before is put back."""

from __future__ import annotations

import os
import signal

import pytest

from labkit.ops.signals import StopSignals, exit_code


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_the_first_signal_is_noted_by_name_and_code(number: int, name: str) -> None:
    with StopSignals() as signals:
        assert (signals.received, signals.name) == (0, "")
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.name == name
    assert exit_code(name) == 128 + number


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)
