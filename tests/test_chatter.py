"""What libraries and their children print goes to a log, and only while a block lasts."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from labkit.chatter import children_to_log


def complain(text: str) -> None:
    subprocess.run(["bash", "-c", f"echo {text} >&2"], check=True)


def test_what_a_child_writes_to_stderr_is_in_the_log_as_long_as_the_block_lasts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "logs" / "log"
    with children_to_log(log):
        complain("inside")
    complain("outside")
    with pytest.raises(subprocess.CalledProcessError), children_to_log(log):
        subprocess.run(["bash", "-c", "echo again >&2; exit 1"], check=True)
    complain("after")
    assert log.read_text() == "inside\nagain\n"
    assert capfd.readouterr().err == "outside\nafter\n"
