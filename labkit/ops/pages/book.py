"""The book: the executed labs of one run as a small static site, to publish for those who learn alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labkit.errors import DataError, MissingResult
from labkit.ops.notebooks import Lab
from labkit.ops.pages.page import Site
from labkit.ops.pages.template import filled
from labkit.workspace import write_atomically

TITLE = "Hands-on labs on quantizing large language models"
LEAD = (
    "Numbered labs in which a language model is quantized, judged, served and published, with the tools that people "
    "use for it. Each page is a notebook as it ran, with its pictures; worked answers are folded away."
)
INDEX = "index.html"


def write_book(labs: Sequence[Lab], run: Path, folder: Path) -> list[Path]:
    """Writes the pages of a run (a folder that `labkit run` made) into `folder`; returns them, the index first.

    Raises MissingResult for a folder that holds no run or no executed lab, DataError for a report that can't be read.
    """
    report, found = _report(run), {}
    results = {result["name"]: result for result in report["labs"]}
    for lab in labs:
        notebook = results.get(lab.name, {}).get("notebook")
        if notebook and (run / notebook).is_file():
            found[lab.name] = run / notebook
    if not found:
        raise MissingResult(f"{run} holds no executed lab", fix="make one: labkit run")
    titles = {lab.name: lab.title for lab in labs if lab.name in found}
    site = Site(INDEX, "All labs", titles)
    pages = {INDEX: site.page(TITLE, _index(labs, results, report, found), INDEX)}
    private = str(report.get("workspace", ""))
    pages |= {f"{name}.html": site.lab_page(name, notebook, private) for name, notebook in found.items()}
    for name, text in pages.items():
        write_atomically(folder / name, text)
    return [folder / name for name in pages]


def _report(run: Path) -> dict[str, Any]:
    path = run / "report.json"
    if not path.is_file():
        raise MissingResult(f"{path} is not there", why="a book is made of a run", fix="make one: labkit run")
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return report | {"labs": list(report["labs"])}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} can't be read: {error}", fix="run the labs again: labkit run") from error


def _index(
    labs: Sequence[Lab], results: Mapping[str, Any], report: Mapping[str, Any], found: Mapping[str, Path]
) -> str:
    rows = []
    for lab in labs:
        result = results.get(lab.name, {})
        rows.append(
            {
                "title": lab.title,
                "question": question_of(lab.path),
                "page": f"{lab.name}.html" if lab.name in found else None,
                "seconds": result.get("seconds") or result.get("before_seconds", 0),
                "verdict": result.get("verdict", "not run"),
                "reason": result.get("reason", ""),
            }
        )
    return filled("book", title=TITLE, lead=LEAD, report=report, labs=rows)


def question_of(notebook: Path) -> str:
    """The question that a lab opens with; "" if it has none."""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if found := re.search(r"\*\*The question of this lab: (.+?)\*\*", "".join(cell["source"])):
            return found.group(1)[:1].upper() + found.group(1)[1:]
    return ""
