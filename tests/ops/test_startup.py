"""What a process of labkit's own leaves out when it starts, and that nothing which it needs goes with it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SAYS = """
import sys
{first}
import nbformat, papermill
from nbformat.v4 import new_code_cell, new_notebook
nbformat.validate(new_notebook(cells=[new_code_cell("1")]))
try:
    nbformat.validate({{"nbformat": 4, "nbformat_minor": 5, "metadata": {{}}, "cells": [{{"cell_type": "no"}}]}})
except nbformat.ValidationError:
    print("rfc3987_syntax.syntax_helpers" in sys.modules)
"""


@pytest.mark.parametrize(
    ("first", "loaded"),
    [
        ("", "True"),
        ("from labkit.ops.cli import main\ntry: main(['no such command'])\nexcept SystemExit: pass", "False"),
        ("from labkit.ops.execute import main\ntry: main('no such job')\nexcept FileNotFoundError: pass", "False"),
    ],
    ids=["without labkit", "labkit's command", "a lab's own process"],
)
def test_notebooks_are_validated_without_a_grammar_of_addresses(first: str, loaded: str) -> None:
    """The first case shows that there is still something to skip."""
    found = subprocess.run([sys.executable, "-c", SAYS.format(first=first)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == loaded
