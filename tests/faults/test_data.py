"""Data files as people really have them: each fault is an error that names the file and the place, or a warning."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labkit.data import calibration_set
from labkit.errors import DataError
from labkit.lab import Lab
from labkit.profiles import TINY, WORKBENCH, Parameters
from labkit.store import Context, Workspace
from tests.conftest import ROOT
from tests.faults.count import Fault
from tests.models import make_model, small_tokenizer

GOOD = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
LINE = json.dumps(GOOD).encode() + b"\n"


def calibrate(tmp_path: Path, data: bytes, **more: Any) -> Any:
    """The calibration set of one file, as a lab asks for it with `data` set."""
    (tmp_path / "calibration.jsonl").write_bytes(data)
    return calibration_set(TINY.calibration, more.pop("tokenizer", small_tokenizer()), data=str(tmp_path), **more)


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", r"calibration\.jsonl has no rows"),
    "blank": (b"\n\n \n", r"calibration\.jsonl has no rows"),
    "not UTF-8": (LINE * 2 + b'{"messages": "caf\xe9"}\n' + LINE, r"not UTF-8 text: byte \d+ is 0xe9, in line 3"),
    "cut JSON": (LINE + b'{"messages": \n' + LINE, "line 2 is not JSON"),
    "deep": (LINE + b"[" * 200_000 + b"\n", "line 2 is not JSON"),
    "cut at the end": (LINE + LINE[:-20], "line 2 is not JSON"),
    "zeros": (LINE + b"\x00\x00\x00\n", "line 2 is not JSON"),
    "no column": (LINE + b'{"words": 1}\n', "row 2"),
    "NaN": (LINE + b'{"messages": NaN}\n', "row 2"),
    "no content": (LINE + b'{"messages": [{"role": "user"}]}\n', "row 2"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_is_an_error_that_names_the_place(tmp_path: Path, fault: Fault, what: str) -> None:
    data, says = BAD[what]
    fault.injected()
    with pytest.raises(DataError, match=says) as refused:
        calibrate(tmp_path, data)
    assert "calibration.jsonl" in str(refused.value)
    assert refused.value.fix
    assert len(str(refused.value)) < 2000, "an error quotes a line's beginning, not all of it"


def test_one_row_is_an_error_that_says_how_many_are_wanted_and_one_is_enough_for_one(
    tmp_path: Path, fault: Fault
) -> None:
    fault.injected()
    with pytest.raises(DataError, match=r"has 1 rows with text, and 64 were asked for"):
        calibrate(tmp_path, LINE, rows=64)
    assert len(calibrate(tmp_path, LINE, rows=1).input_ids) == 1


LONG = """
import sys
from labkit.data import calibration_set
from labkit.profiles import TINY
from tests.models import small_tokenizer
(row,) = calibration_set(TINY.calibration, small_tokenizer(), data=sys.argv[1], rows=1).input_ids
print(len(row))
"""


@pytest.mark.long
def test_ten_megabytes_in_one_line_are_one_row_cut_at_the_length_that_is_stated(tmp_path: Path, fault: Fault) -> None:
    """In a process of its own: cutting it into tokens takes much memory, and other tests measure theirs."""
    long = json.dumps({"text": "twelve apples and " * 600_000}).encode() + b"\n"
    assert len(long) > 10_000_000
    (tmp_path / "calibration.jsonl").write_bytes(long)
    fault.injected()
    command = [sys.executable, "-c", LONG, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=fault.environment(), capture_output=True, text=True, check=True)
    assert int(done.stdout) == TINY.calibration.max_length


def test_a_template_that_raises_is_an_error_that_names_the_row(tmp_path: Path, fault: Fault) -> None:
    tokenizer = copy.deepcopy(small_tokenizer())
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    fault.injected()
    with pytest.raises(DataError, match=r"the chat template failed on row 1 of calibration\.jsonl: .*must alternate"):
        calibrate(tmp_path, LINE, rows=1, tokenizer=tokenizer)


def test_rows_that_repeat_the_test_set_are_told_with_their_number_and_the_first_one(
    tmp_path: Path, fault: Fault, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = [f"Ann has {number} red apples and eats two. How many are left?" for number in range(40)]
    calibration = [{"question": q.upper() if i % 2 else q, "answer": "n"} for i, q in enumerate(questions[:6])]
    calibration += [{"question": f"What is {i} plus {i}, please?", "answer": "n"} for i in range(10)]
    write(tmp_path, "calibration", calibration)
    write(tmp_path, "gsm8k_test", [{"question": question} for question in questions[3:]])
    fault.injected()
    profile = replace(WORKBENCH, calibration=replace(WORKBENCH.calibration, rows=16))
    model = make_model(tmp_path / "model")
    context = Context(Workspace(tmp_path / "workspace"), profile, data=str(tmp_path))
    lab = Lab("02_x", context, Parameters(model=str(model), data=str(tmp_path)))

    def said() -> str:
        lab.calibration_rows()
        return " ".join(capsys.readouterr().out.split())

    first = said()
    assert "Warning: of gsm8k_test.jsonl, 3 of the questions stand in the 16 calibration rows of calibration." in first
    assert repr(questions[3][:60]) in first
    write(tmp_path, "ifeval", [{"prompt": questions[2]}])
    assert "Warning: of ifeval.jsonl, 1 of the questions" in said()
    (tmp_path / "ifeval.jsonl").unlink()
    write(tmp_path, "gsm8k_test", [{"question": questions[30]}])
    assert said() == ""


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
