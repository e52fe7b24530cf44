"""RELIABILITY.md promises what tests hold, and leaves out no test of this room."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PROMISED = re.findall(r"\| `(tests/[\w/]+\.py::test_\w+)` \|$", (ROOT / "RELIABILITY.md").read_text(), re.MULTILINE)
# held by others' rows: each shows that a fault bites, or is one of several ways to inject it
BESIDE = {
    "test_a_folder_takes_the_place_of_another_in_one_step",
    "test_what_was_found_once_is_read",
    "test_anything_that_nearly_is_what_it_should_be_is_read_or_refused",
    "test_whatever_the_ledger_takes_it_gives_back",
    "test_any_parameter_is_taken_as_its_type_or_refused",
}


def names_in(path: Path) -> set[str]:
    body = ast.parse(path.read_text()).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_each_row_of_a_table_names_a_test() -> None:
    rows = [line for line in (ROOT / "RELIABILITY.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) - len([line for line in rows if line.startswith("| fault |")]) == len(PROMISED) > 40


@pytest.mark.parametrize("promised", sorted(set(PROMISED)))
def test_a_promised_test_is_there(promised: str) -> None:
    path, name = promised.split("::")
    assert name in names_in(ROOT / path)


def test_no_fault_is_left_out() -> None:
    here = Path(__file__)
    known = set().union(*(names_in(path) for path in here.parent.glob("test_*.py") if path != here))
    assert known - {promised.split("::")[1] for promised in PROMISED} == BESIDE
