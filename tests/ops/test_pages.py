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

from labkit.errors import DataError, MissingResult
from labkit.ops.cli import main
from labkit.ops.notebooks import find_labs
from labkit.ops.pages import Site, write_book
from tests.conftest import LABS, LabsRun
from tests.ops.probes import labkit, write_lab

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SITE = Site("index.html", "All labs", {"00_start_here": "Lab 00: Start", "01_next": "Lab 01: <Next> & more"})


class Links(HTMLParser):
    """What a page leads to, what it loads from elsewhere, and pictures and links without words."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.wordless: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids += [str(found["id"])] if "id" in found else []
        if tag == "a":
            self.links.append(str(found.get("href")))
        if tag in ("script", "link", "iframe") or (tag == "img" and not str(found["src"]).startswith("data:")):
            self.loaded.append(str(found))
        if tag == "img" and not found.get("alt"):
            self.wordless.append(tag)


def read(path: Path) -> Links:
    links = Links()
    links.feed(path.read_text(encoding="utf-8"))
    return links


def broken(folder: Path) -> list[str]:
    """Links of all pages of a folder that lead to nothing in it."""
    pages = {path.name: read(path) for path in folder.glob("*.html")}
    bad = []
    for name, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            file, _, anchor = unquote(link).partition("#")
            target = file or name
            if not (folder / target).exists() or (anchor and target in pages and anchor not in pages[target].ids):
                bad.append(f"{name}: {link}")
    return bad


def page_of(tmp_path: Path, *cells: nbformat.NotebookNode, private: str = "") -> str:
    path = tmp_path / "notebook.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), path)
    return SITE.lab_page("00_start_here", path, private)


def test_formulas_become_mathml_and_no_script_is_needed(tmp_path: Path) -> None:
    page = page_of(tmp_path, new_markdown_cell("Here $s_j$ and\n\n$$\\hat w = \\frac{1}{2}$$\n\nend"))
    assert page.count("<math") == 2
    assert "<mfrac>" in page
    assert "$" not in page
    assert "<script" not in page


def test_links_lead_to_other_pages_or_are_only_words(tmp_path: Path) -> None:
    text = "[next](01_next.ipynb#a) [gone](07_gone.ipynb) [all](../README.md#the-labs) [out](https://arxiv.org/abs/1)"
    page = page_of(tmp_path, new_markdown_cell(text))
    assert 'href="01_next.html#a"' in page
    assert "07_gone" not in page
    assert " gone " in page
    assert '<a href="index.html">all</a>' in page
    assert 'href="https://arxiv.org/abs/1"' in page


def test_a_worked_answer_is_folded_and_what_the_page_does_not_need_is_left_out(tmp_path: Path) -> None:
    page = page_of(
        tmp_path,
        new_markdown_cell("Time: <!-- time -->4 min<!-- /time -->"),
        new_code_cell("limit = 1", metadata={"tags": ["parameters"]}),
        new_code_cell("limit = 7", metadata={"tags": ["injected-parameters"]}),
        new_code_cell("answer = 42", metadata={"tags": ["solution"]}),
    )
    folded = page[page.index("<details>") : page.index("</details>")]
    assert "answer" in folded
    assert "42" in folded
    assert "!--" not in page
    assert "limit" in page
    assert "7" not in re.sub("<[^>]+>", "", page[page.index('<main id="content">') :])


def test_outputs_are_shown_as_they_were_and_nothing_of_them_is_executed(tmp_path: Path) -> None:
    bar = new_output("stream", name="stdout", text="evaluating:   0%\revaluating:  50%\revaluating: 100%\r\nnext\n")
    evil = new_output("stream", name="stdout", text="<script>alert(1)</script> in /home/me/work/workspace/x")
    picture = new_output(
        "display_data", data={"image/png": PIXEL}, metadata={"image/png": {"alt": 'three "bars" & a line'}}
    )
    page = page_of(tmp_path, new_code_cell("x", outputs=[bar, evil, picture]), private="/home/me/work/workspace")
    assert "evaluating: 100%" in page
    assert "50%" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "in workspace/x" in page
    assert """alt='three "bars" &amp; a line'""" in page


def test_headings_can_be_led_to_and_lead_nowhere_themselves(tmp_path: Path) -> None:
    page = page_of(tmp_path, new_markdown_cell("# Lab 00\n\n## What you_take `home`"))
    assert '<h2 id="What-you_take-home">' in page
    assert "anchor-link" not in page


def test_titles_are_escaped_and_neighbours_are_named(tmp_path: Path) -> None:
    page = page_of(tmp_path, new_markdown_cell("# Lab 00"))
    assert "Lab 01: &lt;Next&gt; &amp; more →" in page
    assert 'aria-current="page"' in page


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
    assert broken(tmp_path / "out") == []
    book = labkit("book", "--run", "out", cwd=tmp_path)
    assert book.returncode == 0, book.stderr
    assert book.stdout.splitlines()[-1] == str(tmp_path / "book" / "index.html")
    assert broken(tmp_path / "book") == []
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
    assert broken(tmp_path) == broken(labs_run.output) == []
    for folder in (tmp_path, labs_run.output):
        for page in folder.glob("*.html"):
            found = read(page)
            assert found.loaded == found.wordless == [], page
    assert str(labs_run.workspace.root) not in "".join(page.read_text() for page in pages)
