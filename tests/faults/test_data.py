"""Data files as people really have them: each fault is an error that names the file and the place, or a warning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labkit.calibration import calibration_set
from labkit.errors import DataError
from labkit.profiles import TINY
from tests.faults.count import Fault
from tests.models import small_tokenizer

GOOD = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
LINE = json.dumps(GOOD).encode() + b"\n"


def calibrate(tmp_path: Path, data: bytes, **more: Any) -> Any:
    """The calibration set of one file, as a lab asks for it with `data` set."""
    (tmp_path / "calibration.jsonl").write_bytes(data)
    return calibration_set(TINY.calibration, more.pop("tokenizer", small_tokenizer()), data=str(tmp_path), **more)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", r"calibration\.jsonl has no rows"),
        (b"\n\n \n", r"calibration\.jsonl has no rows"),
        (LINE * 2 + b'{"messages": "caf\xe9"}\n' + LINE, r"is not UTF-8 text: byte \d+ is 0xe9, in line 3"),
        (LINE + b'{"messages": \n' + LINE, r"line 2 is not JSON"),
        (LINE + b"[" * 200_000 + b"\n", r"line 2 is not JSON"),
        (LINE + LINE[:-20], r"line 2 is not JSON"),
        (LINE + b"\x00\x00\x00\n", r"line 2 is not JSON"),
        (LINE + b'{"words": 1}\n', r"row 2|line 2"),
        (LINE + b'{"messages": NaN}\n', r"row 2|line 2"),
        (LINE + b'{"messages": [{"role": "user"}]}\n', r"row 2|line 2"),
    ],
    ids=[
        "empty",
        "blank",
        "not UTF-8",
        "cut JSON",
        "deep",
        "cut at the end",
        "zeros",
        "no column",
        "NaN",
        "no content",
    ],
)
def test_a_bad_file_is_an_error_that_names_the_place(tmp_path: Path, fault: Fault, data: bytes, says: str) -> None:
    fault.injected()
    with pytest.raises(DataError, match=says) as told:
        calibrate(tmp_path, data)
    assert "calibration.jsonl" in str(told.value)
    assert told.value.fix
    assert len(str(told.value)) < 2000, "an error quotes a line's beginning, not all of it"
