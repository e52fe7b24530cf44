"""Probe notebooks: real notebooks of a few cells that end in every way that a lab can end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

END = """import os, pathlib
pathlib.Path(os.environ["LABKIT_END_FILE"]).write_text(os.environ["LABKIT_END_TOKEN"])"""
PARAMETERS = 'profile = ""\nworkspace = ""\nmodel = ""\ndata = ""\nlimit = 0'
PUBLISH = """import pathlib
from labkit.files import publishing
from labkit.store import Workspace
with publishing(Workspace(pathlib.Path(workspace)).checkpoint("int8-rtn"), base="tiny") as stage:
    (stage / "config.json").write_text("{}")"""


def write_lab(
    folder: Path, name: str, *cells: str, parameters: str = PARAMETERS, end: bool = True, **about: object
) -> Path:
    """Writes `NAME.ipynb`: a title, the parameters cell, `cells`, and the end mark. about: labkit's metadata."""
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    codes = [new_code_cell(cell) for cell in [*cells, *([END] if end else [])]]
    notebook = new_notebook(cells=[new_markdown_cell(f"# Probe {name}"), first, *codes])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["labkit"] = about
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def record(variant: str, value: float, **more: object) -> str:
    """A cell that writes a headline score of this lab and run into the ledger, as labs do."""
    return f"""import os, pathlib
from labkit.ledger import Measurement
from labkit.store import Workspace
line = Measurement("accuracy", "exact_match", {value}, {variant!r}, "tiny", task="tiny_problems", stderr=0.01, n=500,
                   lab=os.environ["LABKIT_LAB"], run=os.environ["LABKIT_RUN"], **{more!r})
Workspace(pathlib.Path(workspace)).ledger.append([line])"""


def outputs(path: Path) -> str:
    """All text that an executed notebook's cells printed."""
    cells = nbformat.read(path, as_version=4).cells
    return "".join(out.get("text", "") for cell in cells for out in cell.get("outputs", []))


def labkit(*words: str, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command line as a user does, from a folder that has `notebooks/`."""
    return subprocess.run(
        command(*words), cwd=cwd, env=clean_environment(env), capture_output=True, text=True, timeout=600, check=False
    )


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "labkit.cli", *words]


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without what a developer may have set for labkit."""
    return {k: v for k, v in os.environ.items() if not k.startswith("LABKIT_")} | dict(more or {})
