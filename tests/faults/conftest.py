"""Every test of this room injects a fault and is marked `faults`; what was counted is printed at the session's end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.count import Counts, Fault

HERE = Path(__file__).parent
COUNTS = pytest.StashKey[Counts]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COUNTS] = Counts()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE) and not item.get_closest_marker("labs"):  # those need a run of all labs
            item.add_marker(pytest.mark.faults)


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Fault:
    return Fault(request.config.stash[COUNTS])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    counts = config.stash[COUNTS]
    if counts.injected:
        terminalreporter.write_line(str(counts), bold=True, red=bool(counts.processes_left or counts.bytes_lost))
