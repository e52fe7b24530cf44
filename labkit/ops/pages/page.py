"""Pages around notebooks: one template, one style, a list of the labs at the side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote

from labkit.ops.pages.render import cells_html, code_css
from labkit.ops.pages.template import HERE, filled


@dataclass(frozen=True)
class Site:
    """Pages that belong together. home: the file that all others lead back to, with its name. titles: lab to title."""

    home: str
    home_name: str
    titles: Mapping[str, str]

    def page(self, title: str, body: str, current: str) -> str:
        """A whole page; `body` is HTML, `current` the file that it becomes."""
        from markupsafe import Markup

        entries = [(quote(f"{lab}.html"), text) for lab, text in self.titles.items()]
        place = next((i for i, (file, _) in enumerate(entries) if file == quote(current)), None)
        return filled(
            "page",
            title=title,
            css=Markup(_style()),
            home=self.home,
            home_name=self.home_name,
            entries=entries,
            current=quote(current),
            body=Markup(body),
            before=entries[place - 1] if place else None,
            after=entries[place + 1] if place is not None and place + 1 < len(entries) else None,
        )

    def lab_page(self, lab: str, notebook: Path, private: str = "") -> str:
        """An executed notebook as a page. private: a folder of this machine that its cells name as `workspace` then."""
        import nbformat

        text = notebook.read_text(encoding="utf-8")
        if private:
            text = text.replace(json.dumps(private)[1:-1], "workspace")
        body = cells_html(nbformat.reads(text, as_version=4), self.link)
        return self.page(self.titles.get(lab, lab), body, f"{lab}.html")

    def link(self, url: str) -> str | None:
        """A link of a notebook as one of these pages: to another lab, or to the list of the labs.

        None for a lab that has no page here.
        """
        path, mark, anchor = url.partition("#")
        if path.endswith(".ipynb"):
            lab = path.removesuffix(".ipynb")
            return f"{quote(lab)}.html{mark}{anchor}" if lab in self.titles else None
        return self.home if path == "../README.md" else url


@cache
def _style() -> str:
    """The styles of every page."""
    return f"{(HERE / 'style.css').read_text(encoding='utf-8')}\n{code_css()}"
