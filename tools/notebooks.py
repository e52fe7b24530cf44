"""The labs as files: no kernel, no outputs, the same bytes that Jupyter writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LABS = ROOT / "notebooks"


def lab_paths(folder: Path = LABS) -> list[Path]:
    """The labs in their order."""
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def dumps(notebook: dict[str, Any]) -> str:
    """A notebook as Jupyter writes it."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def source(cell: dict[str, Any]) -> str:
    """A cell's text; the file may hold it as one string or as lines."""
    return "".join(cell["source"])


def set_source(cell: dict[str, Any], text: str) -> None:
    cell["source"] = text.splitlines(keepends=True)


def tags(cell: dict[str, Any]) -> list[str]:
    found: list[str] = cell["metadata"].get("tags", [])
    return found


def prose(notebook: dict[str, Any]) -> str:
    """All its Markdown."""
    return "\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")


def title(notebook: dict[str, Any]) -> str:
    """The text of the first H1."""
    return next((line[2:].strip() for line in prose(notebook).splitlines() if line.startswith("# ")), "")
