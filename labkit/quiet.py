"""Silence while speed is measured: the labs that `labkit run --jobs` runs beside this one stand still.

A lab asks by a file in a folder that the runner told it, and the runner answers by another one once all processes of
the others are stopped (ops/stillness.py). What the two files hold is a word that is new each time, so that a late
answer to an earlier question counts for nothing.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labkit.errors import ProcessFailed

FOLDER = "LABKIT_QUIET"  # the environment variable
ASKED, GRANTED = "quiet-asked", "quiet-granted"
LONGEST_WAIT_SECONDS = 60.0


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block no other lab of the same run does anything; without a runner it asks for nothing.

    Raises ProcessFailed if the runner does not answer.
    """
    folder = os.environ.get(FOLDER)
    if not folder:
        yield
        return
    asked, granted, word = Path(folder) / ASKED, Path(folder) / GRANTED, secrets.token_hex(8)
    asked.write_text(word, encoding="ascii")
    try:
        began = time.monotonic()
        while not (granted.exists() and granted.read_text(encoding="ascii") == word):
            if time.monotonic() - began > LONGEST_WAIT_SECONDS:
                raise ProcessFailed(
                    f"`labkit run` did not stop the other labs within {LONGEST_WAIT_SECONDS:.0f} s",
                    why="a speed that is measured beside other work is none",
                    fix="run the labs one at a time, without --jobs",
                )
            time.sleep(0.02)
        yield
    finally:
        asked.unlink(missing_ok=True)
