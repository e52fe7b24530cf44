"""Silence is asked for when a child is ready to measure, and ends with the measuring."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from labkit import quiet
from labkit.ops import stillness
from labkit.serving.silence import Silence


def test_a_child_that_is_ready_begins_when_the_others_stand_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setenv(quiet.FOLDER, str(room))
    answered: list[bool] = []

    def runner() -> None:
        while not stillness.asks(room):
            time.sleep(0.02)
        answered.append(silence.go.exists())
        stillness.grant(room)

    thread = threading.Thread(target=runner, daemon=True)
    with Silence(tmp_path / "child.log") as silence:
        thread.start()
        silence.look()
        assert not stillness.asks(room), "the child is not ready"
        silence.ready.touch()
        silence.look()
        assert answered == [False], "it began before the others stood still"
        assert silence.go.exists()
        silence.look()
        assert stillness.asks(room), "the others stand still until the end"
    thread.join()
    assert not stillness.asks(room)
    assert not silence.ready.exists()
    assert not silence.go.exists()
