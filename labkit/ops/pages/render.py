"""An executed notebook as HTML that needs no network: formulas as MathML, pictures inside, answers folded away."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from labkit.ops.pages.template import HERE
from labkit.pace import INJECTED

if TYPE_CHECKING:
    from nbconvert.exporters import HTMLExporter

Link = Callable[[str], str | None]  # where a link of a notebook leads on the page; None: nowhere


def cells_html(notebook: Any, link: Link = lambda url: url) -> str:
    """The cells of a notebook node with their outputs, without a page around them. Nothing in it is trusted."""
    exporter = _exporter()
    exporter.register_filter("markdown2html", _MarkdownFilter(link))
    body, _ = exporter.from_notebook_node(tidied(notebook))
    return str(body)


def tidied(notebook: Any) -> Any:
    """A copy without the cell that papermill put in, and in which a progress bar shows its last state only."""
    notebook = copy.deepcopy(notebook)
    notebook.cells = [c for c in notebook.cells if INJECTED not in c.get("metadata", {}).get("tags", [])]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in output.text.split("\n"))
    return notebook


def code_css() -> str:
    """The styles of highlighted code."""
    from pygments.formatters import HtmlFormatter

    return str(HtmlFormatter(style=_style(), nobackground=True).get_style_defs(".highlight"))


class _MarkdownFilter:
    """nbconvert's Markdown, its formulas turned into MathML and its links into those of the page."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def __call__(self, source: str) -> str:
        from nbconvert.filters.markdown_mistune import MarkdownWithMath

        return str(MarkdownWithMath(renderer=_renderer(self._link)).render(source))


def _renderer(link: Link) -> Any:
    from latex2mathml.converter import convert
    from nbconvert.filters.markdown_mistune import IPythonRenderer

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return str(convert(body.strip(), display="block"))

        def inline_math(self, body: str) -> str:
            return str(convert(body))

        def heading(self, text: str, level: int, **attrs: Any) -> str:
            whole = str(super().heading(text, level, **attrs))
            return re.sub(r'<a class="anchor-link"[^>]*(/>|></a>)', "", whole)  # a link with no text leads nobody

        def link(self, text: str, url: str, title: str | None = None) -> str:
            target = link(url)
            return text if target is None else str(super().link(text, target, title))

        def block_html(self, html: str) -> str:
            return "" if html.strip().startswith("<!--") else str(super().block_html(html))

        def inline_html(self, html: str) -> str:
            return "" if html.startswith("<!--") else str(super().inline_html(html))

        def table(self, text: str) -> str:
            return f'<div class="wide" tabindex="0"><table>{text}</table></div>\n'

    return Renderer(escape=True, anchor_link_text="")


@cache
def _exporter() -> HTMLExporter:
    from nbconvert.exporters import HTMLExporter

    return HTMLExporter(template_name="cells", extra_template_basedirs=[str(HERE)])


def _style() -> Any:
    """Few colours, each with a contrast of 4.5 and more on the grey behind it."""
    from pygments.style import Style
    from pygments.token import Comment, Keyword, Name, Number, Operator, String

    class Readable(Style):
        styles = {  # noqa: RUF012  as pygments declares it
            Comment: "italic #555555",
            Keyword: "bold #00527f",
            Name.Builtin: "#00527f",
            Number: "#8a2d00",
            Operator.Word: "bold #00527f",
            String: "#00563f",
        }

    return Readable
