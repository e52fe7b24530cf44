"""The executed labs of a run as pages beside its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from labkit.ops.notebooks import Lab
from labkit.ops.pages.page import Site
from labkit.workspace import write_atomically


def pages_of_run(
    executed: Sequence[tuple[Lab, str | None]], output: Path, tell: Callable[[str], None]
) -> dict[str, str]:
    """Writes each executed notebook as a page beside it; returns the pages' names by lab.

    executed: each lab with its notebook in `output`, or None. Called when all labs have ended, since only then it is
    known to which of the others a page may lead. A notebook that can't be drawn is told, and changes no verdict.
    """
    notebooks = [(lab, notebook) for lab, notebook in executed if notebook]
    site = Site("report.html", "The report", {lab.name: lab.title for lab, _ in notebooks})
    pages = {}
    for lab, notebook in notebooks:
        page = f"{lab.name}.html"
        try:
            write_atomically(output / page, site.lab_page(lab.name, output / notebook))
            pages[lab.name] = page
        except Exception as error:  # noqa: BLE001  whatever is in a notebook
            tell(f"{lab.name}: no page could be made of its notebook: {error}")
    return pages
