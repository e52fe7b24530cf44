"""Executed notebooks as pages: whole, without a network, without a link that leads nowhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from labkit.cli import main
from labkit.errors import DataError, MissingResult
from labkit.ops.notebooks import find_labs
from labkit.ops.report import Site, write_book
from tests.conftest import LABS, LabsRun
from tests.ops.probes import labkit, write_lab

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SITE = Site("index.html", "All labs", {"00_start_here": "Lab 00: Start", "01_next": "Lab 01: <Next> & more"})


class Links(HTMLParser):
    """What a page leads to, what it loads from elsewhere, and pictures without words."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.bad: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [str(found["id"])] if "id" in found else []
        if tag == "a":
            self.links.append(str(found.get("href")))
        elsewhere = tag == "img" and not (str(found["src"]).startswith("data:") and found.get("alt"))
        if tag in ("script", "link", "iframe") or elsewhere:
            self.bad.append(f"{tag} {found}")


def faults(folder: Path) -> list[str]:
    """Links of all pages of a folder that lead to nothing in it, and whatever else is wrong with a page."""
    pages = {path.name: Links(path) for path in folder.glob("*.html")}
    bad = [f"{name}: {what}" for name, page in pages.items() for what in page.bad]
    for name, page in pages.items():
        for link in page.links:
            file, _, anchor = unquote(link).partition("#")
            target = file or name
            lost = not (folder / target).exists() or (anchor and target in pages and anchor not in pages[target].ids)
            if lost and not re.match(r"[a-z]+:", link):
                bad.append(f"{name}: {link}")
    return bad


def page_of(tmp_path: Path, *cells: nbformat.NotebookNode, private: str = "") -> str:
    path = tmp_path / "notebook.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), path)
    return SITE.lab_page("00_start_here", path, private)


def test_prose_is_shown_with_formulas_as_mathml_and_links_that_lead_to_pages(tmp_path: Path) -> None:
    text = (
        "# Lab 00\n\n## What you_take `home`\n\nHere $s_j$ and\n\n$$\\hat w = \\frac{1}{2}$$\n\n"
        "Time: <!-- time -->4 min<!-- /time -->\n\n"
        "[next](01_next.ipynb#a) [gone](07_gone.ipynb) [all](../README.md#the-labs) [out](https://arxiv.org/abs/1)\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |"
    )
    page = page_of(tmp_path, new_markdown_cell(text))
    assert page.count("<math") == 2
    assert "<mfrac>" in page
    for said in (
        'href="01_next.html#a"',
        " gone ",
        '<a href="index.html">all</a>',
        'href="https://arxiv.org/abs/1"',
        '<h2 id="What-you_take-home">',
        "4 min",
        '<div class="wide" tabindex="0"><table>',
        "Lab 01: &lt;Next&gt; &amp; more →",
        'aria-current="page"',
    ):
        assert said in page
    for absent in ("$", "<script", "07_gone", "!--", "<Next>"):
        assert absent not in page


def test_cells_are_shown_as_they_ran_and_nothing_of_them_is_executed(tmp_path: Path) -> None:
    bar = new_output("stream", name="stdout", text="evaluating:   0%\revaluating:  50%\revaluating: 100%\r\nnext\n")
    evil = new_output("stream", name="stdout", text="<script>alert(1)</script> in /home/me/work/workspace/x")
    alt = 'three "bars" & a line'
    picture = new_output("display_data", data={"image/png": PIXEL}, metadata={"image/png": {"alt": alt}})
    cells = [
        new_code_cell("limit = 1", metadata={"tags": ["parameters"]}),
        new_code_cell("limit = 7000", metadata={"tags": ["injected-parameters"]}),
        new_code_cell("answer = 4200", metadata={"tags": ["solution"]}),
        new_code_cell("x", outputs=[bar, evil, picture]),
    ]
    page = page_of(tmp_path, *cells, private="/home/me/work/workspace")
    folded = page[page.index("<details>") : page.index("</details>")]
    assert "4200" in folded
    for said in ("limit", "evaluating: 100%", "&lt;script&gt;alert(1)", "in workspace/x", 'alt=\'three "bars" &amp;'):
        assert said in page
    for absent in ("7000", "50%", "<script", "/home/me"):
        assert absent not in page


def test_a_run_leaves_pages_whose_links_all_lead_somewhere(tmp_path: Path) -> None:
    write_lab(tmp_path / "notebooks", "00_start_here", "print('ran')")
    write_lab(tmp_path / "notebooks", "01_fails", "raise ValueError('boom')")
    write_lab(tmp_path / "notebooks", "02_blocked", needs=["01_fails"])
    done = labkit("run", "--output", "out", cwd=tmp_path)
    assert done.returncode == 1
    pages = {lab["name"]: lab["page"] for lab in json.loads((tmp_path / "out" / "report.json").read_text())["labs"]}
    assert pages == {"00_start_here": "00_start_here.html", "01_fails": "01_fails.html", "02_blocked": None}
    assert "ran" in (tmp_path / "out" / "00_start_here.html").read_text()
    assert "boom" in (tmp_path / "out" / "01_fails.html").read_text()
    assert faults(tmp_path / "out") == []
    book = labkit("book", "--run", "out", cwd=tmp_path)
    assert book.returncode == 0, book.stderr
    assert book.stdout.splitlines()[-1] == str(tmp_path / "book" / "index.html")
    assert faults(tmp_path / "book") == []
    assert "02_blocked" in (tmp_path / "book" / "index.html").read_text(), "what was not run is listed, without a link"


def test_a_book_needs_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labs = find_labs(write_lab(tmp_path / "notebooks", "00_start_here").parent)
    monkeypatch.chdir(tmp_path)
    assert main(["book"]) == 1
    assert "labkit run" in capsys.readouterr().err
    for text, kind in (('{"labs": []}', MissingResult), ("{half", DataError)):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(kind):
            write_book(labs, tmp_path, tmp_path / "book")
    assert not (tmp_path / "book").exists()


@pytest.mark.labs
def test_the_book_of_all_labs_is_whole_and_loads_nothing_from_elsewhere(labs_run: LabsRun, tmp_path: Path) -> None:
    pages = write_book(LABS, labs_run.output, tmp_path)
    assert [page.name for page in pages] == ["index.html", *(f"{lab.name}.html" for lab in labs_run.labs)]
    assert faults(tmp_path) == faults(labs_run.output) == []
    assert str(labs_run.workspace.root) not in "".join(page.read_text() for page in pages)
