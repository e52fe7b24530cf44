"""Links in Markdown: do the files that they name exist, and the headings in them?"""

from __future__ import annotations

import re
from pathlib import Path

from tools import notebooks

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def broken(text: str, path: Path) -> list[str]:
    """A sentence for every relative link of `text`, which stands in the file `path`, that leads nowhere."""
    found = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name
        if name and not target.exists():
            found.append(f"there is no {link}")
        elif anchor and anchor.lower() not in anchors(_text(target) if name else text):
            found.append(f"{name or path.name} has no heading #{anchor}")
    return found


def anchors(text: str) -> set[str]:
    """The headings of a Markdown text as links name them: without punctuation, and as JupyterLab does, with it."""
    headings = [heading.lower() for heading in re.findall(r"^#{1,6} +(.*?)\s*$", text, re.MULTILINE)]
    plain = [re.sub(r"[^\w\- ]", "", heading) for heading in headings]
    return {heading.replace(" ", "-") for heading in [*headings, *plain]}


def _text(file: Path) -> str:
    return notebooks.prose(notebooks.read(file)) if file.suffix == ".ipynb" else file.read_text(encoding="utf-8")
