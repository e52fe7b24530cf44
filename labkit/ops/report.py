"""What a run leaves behind: one result for each lab and the headline scores, as JSON, HTML, JUnit XML and a table.

Executed notebooks become HTML pages that need no network: formulas are MathML, pictures stand inside, answers are
folded away. `labkit book` makes a static site of them, to publish for those who learn alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from labkit.errors import DataError, MissingResult
from labkit.files import write_atomically
from labkit.ledger import SPEEDUP, Ledger, Measurement
from labkit.ops import duration, number, plain, size, table
from labkit.ops.notebooks import Lab, source
from labkit.pace import INJECTED
from labkit.profiles import Profile

TEMPLATES = Path(__file__).with_name("pages")
Verdict = Literal["passed", "failed", "timeout", "dead-kernel", "skipped"]
# A lab's line in the table shows the first kind of measurement that it has.
FIRST_KINDS = ("accuracy", "perplexity", "throughput", "latency", "size", "quantize", "memory", "prediction")
SHOWN = 4  # variants in one line of the table


@dataclass(frozen=True)
class Score:
    """A headline figure of one variant: the main task's accuracy, its standard error and number of samples."""

    value: float
    stderr: float | None
    n: int | None
    task: str


@dataclass(frozen=True)
class Skip:
    """A part of a lab that was left out, and the row of the capability matrix that says why."""

    part: str
    reason: str


@dataclass(frozen=True)
class Failure:
    """Where and how a lab ended: the cell, the error in one line, its traceback, and the end of the log."""

    where: str
    error: str
    traceback: str
    log_tail: str


@dataclass(frozen=True)
class LabResult:
    """How one lab ended.

    peak_bytes: the most memory that the lab, its kernel and engines held, shared pages once. notebook, page, log: files
    of the output folder. figure: its headline in one line. capability: it was skipped because this machine can't do it.
    before_seconds: what it took when it last passed in this workspace. unchanged: it was not run again, for nothing
    that goes into it has changed since.
    """

    name: str
    verdict: Verdict
    reason: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0
    skipped: tuple[Skip, ...] = ()
    notebook: str | None = None
    page: str | None = None
    log: str | None = None
    figure: str = ""
    capability: bool = False
    failure: Failure | None = None
    before_seconds: float = 0.0
    unchanged: bool = False

    @property
    def acceptable(self) -> bool:
        """Whether the run can still be a success: passed, or skipped for a reason in the capability matrix."""
        return self.verdict == "passed" or (self.verdict == "skipped" and self.capability)

    @property
    def junit(self) -> str:
        """What JUnit calls it: failed is a failure, timeout and dead-kernel are errors, as is any other skip."""
        return {"failed": "failure", "passed": "passed"}.get(self.verdict, "skipped" if self.acceptable else "error")


@dataclass(frozen=True)
class RunReport:
    """A run so far. `complete` is False until every lab has ended; `stopped` names the signal that ended it before.

    level: `Machine.level`. probe_seconds: what `labkit.pace` compares machines by.
    """

    profile: str
    seconds: float
    headline: dict[str, Score]
    labs: tuple[LabResult, ...]
    complete: bool
    stopped: str
    run: str
    started: str
    workspace: str
    parameters: dict[str, object]
    machine: str
    level: str
    probe_seconds: float
    jobs: int = 1
    notes: tuple[str, ...] = ()

    @property
    def succeeded(self) -> bool:
        return self.complete and not self.stopped and all(lab.acceptable for lab in self.labs)


# --- the main figures, from the ledger lines that a run wrote ---------------------------------------------------------


def run_headlines(ledger: Ledger, run: str, origins: Mapping[str, str] | None = None) -> list[Measurement]:
    """The newest headline lines of one run, lab by lab, whichever ended first; raises DataError for a damaged ledger.

    origins: labs that were not run again, and the earlier run that each one's figures are from.
    """
    found = ledger.headlines(run=run)
    for lab, earlier in (origins or {}).items():
        found += ledger.headlines(run=earlier, lab=lab)
    return sorted(found, key=lambda line: line.lab)


def scores(measured: Sequence[Measurement], profile: Profile) -> dict[str, Score]:
    """Variant to score: the profile's main task where it was measured, else the first accuracy task that was.

    Of one backend only, that of the first line: two backends differ by more than two variants do.
    """
    found = [m for m in measured if m.kind == "accuracy"]
    found = [m for m in found if m.task == profile.main_task.name] or found
    same = [m for m in found if (m.task, m.backend) == (found[0].task, found[0].backend)]
    return {m.variant: Score(m.value, m.stderr, m.n, m.task) for m in same}


def lab_figure(measured: Sequence[Measurement], lab: str, profile: Profile) -> str:
    """One lab's main headline in one line: its metric, then the value of each variant."""
    for kind in FIRST_KINDS:
        if found := [m for m in measured if m.lab == lab and m.kind == kind]:
            first = next((m for m in found if m.task == profile.main_task.name), found[0])
            group = [m for m in found if (m.task, m.metric) == (first.task, first.metric)]
            ratios = [m for m in found if m.metric == SPEEDUP and first.metric != SPEEDUP]
            return "; ".join(_in_one_line(some) for some in (group, ratios) if some)
    return ""


def _in_one_line(group: Sequence[Measurement]) -> str:
    """One metric of several variants, as `metric: variant value, ...`."""
    values = [f"{m.variant} {size(m.value) or '0 B' if m.unit == 'bytes' else number(m.value)}" for m in group[:SHOWN]]
    return f"{group[0].metric}: {', '.join(values + ['...'] * (len(group) > SHOWN))}"


# --- the files and the table ------------------------------------------------------------------------------------------


def write_report(report: RunReport, folder: Path) -> None:
    """Writes the three files, each replaced whole."""
    write_atomically(folder / "report.json", json.dumps(asdict(report), indent=2) + "\n")
    write_atomically(folder / "report.html", html(report))
    write_atomically(folder / "junit.xml", filled("junit.xml", report=report, kinds=[lab.junit for lab in report.labs]))


def html(report: RunReport) -> str:
    """The report as one HTML page that needs no other file: styles inside, everything from the run escaped."""
    failures = [lab for lab in report.labs if not lab.acceptable and lab.failure]
    title = f"labkit run {report.run}: {'passed' if report.succeeded else 'not passed'}"
    body = filled("report.html", report=report, failures=failures)
    return Site("report.html", "The report", {}).page(title, body, "report.html")


def result_table(report: RunReport) -> str:
    """What the terminal shows at the end: a line for each lab, then the headline scores and why labs did not pass."""
    rows = [[lab.name, lab.verdict, f"{lab.seconds:.0f}", size(lab.peak_bytes), lab.figure] for lab in report.labs]
    lines = [table(["lab", "verdict", "seconds", "peak memory", "headline"], rows, right=(2, 3))]
    for lab in report.labs:
        if lab.verdict != "passed":
            lines.append(f"{lab.name} {lab.verdict}: {lab.reason}")
        lines += [f"{lab.name} left out {skip.part}: {' '.join(skip.reason.split())}" for skip in lab.skipped]
    for variant, score in report.headline.items():
        lines.append(f"{score.task}, {variant}: {number(score.value, score.stderr)} (n={score.n})")
    peak = size(max((lab.peak_bytes for lab in report.labs), default=0)) or "nothing measured"
    lines.append(f"{report.profile} on {report.level}: {duration(report.seconds)} in all, peak memory {peak}")
    return "\n".join([*lines, *report.notes])


# --- executed notebooks as pages --------------------------------------------------------------------------------------


def filled(template: str, **values: Any) -> str:
    """A template of the folder `pages` with its values put in, escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    options: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, **options)
    environment.filters |= {"size": size, "duration": duration, "number": number, "plain": plain}
    return environment.get_template(f"{template}.j2").render(**values)


@dataclass(frozen=True)
class Site:
    """Pages that belong together. home: the file that all others lead back to, with its name. titles: lab to title."""

    home: str
    home_name: str
    titles: Mapping[str, str]

    def page(self, title: str, body: str, current: str) -> str:
        """A whole page; `body` is HTML, `current` the file that it will be."""
        css = (TEMPLATES / "style.css").read_text(encoding="utf-8")
        entries = [(quote(f"{lab}.html"), text) for lab, text in self.titles.items()]
        return filled("page.html", site=self, title=title, css=css, entries=entries, current=quote(current), body=body)

    def lab_page(self, lab: str, notebook: Path, private: str = "") -> str:
        """An executed notebook as a page. private: a folder of this machine that the page calls `workspace`."""
        import nbformat

        text = notebook.read_text(encoding="utf-8")
        if private:
            text = text.replace(json.dumps(private)[1:-1], "workspace")
        body = cells_html(nbformat.reads(text, as_version=4), self.link)
        return self.page(self.titles.get(lab, lab), body, f"{lab}.html")

    def link(self, url: str) -> str | None:
        """A link of a notebook as one of these pages: another lab, or the list of labs; None for a lab without one."""
        path, mark, anchor = url.partition("#")
        if path.endswith(".ipynb"):
            lab = path.removesuffix(".ipynb")
            return f"{quote(lab)}.html{mark}{anchor}" if lab in self.titles else None
        return self.home if path == "../README.md" else url


def pages_of_run(labs: Sequence[tuple[Lab, str]], output: Path, say: Callable[[str], None]) -> dict[str, str]:
    """Writes the executed notebooks of all labs as pages beside them in `output`; returns the pages' names by lab.

    A notebook that can't be drawn is reported by `say`, and changes no verdict.
    """
    site, pages = Site("report.html", "The report", {lab.name: lab.title for lab, _ in labs}), {}
    for lab, notebook in labs:
        try:
            write_atomically(output / f"{lab.name}.html", site.lab_page(lab.name, output / notebook))
            pages[lab.name] = f"{lab.name}.html"
        except Exception as error:  # noqa: BLE001  whatever is in a notebook
            say(f"{lab.name}: no page could be made of its notebook: {error}")
    return pages


def write_book(labs: Sequence[Lab], run: Path, folder: Path) -> list[Path]:
    """Writes the pages of a run (a folder that `labkit run` made) into `folder`; returns them, the index first.

    Raises MissingResult for a folder that holds no run or no executed lab, DataError for a report that can't be read.
    """
    try:
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        results = {result["name"]: result for result in report["labs"]}
    except FileNotFoundError as error:
        raise MissingResult(f"{run} holds no run, of which a book is made", fix="make one: labkit run") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{run}/report.json can't be read: {error}", fix="run the labs again: labkit run") from error
    rows, found = [], {}
    for lab in labs:
        result = {"verdict": "not run", "reason": "", "seconds": 0, "before_seconds": 0} | results.get(lab.name, {})
        if result.get("notebook") and (run / result["notebook"]).is_file():
            found[lab.name] = run / result["notebook"]
        text = "\n".join(source(cell) for cell in json.loads(lab.path.read_text(encoding="utf-8"))["cells"])
        question = re.search(r"\*\*The question of this lab: (.)(.+?)\*\*", text)
        asked = question.group(1).upper() + question.group(2) if question else ""
        rows.append(result | {"title": lab.title, "question": asked, "page": f"{lab.name}.html" * (lab.name in found)})
    if not found:
        raise MissingResult(f"{run} holds no executed lab", fix="make one: labkit run")
    index, title = "index.html", "Hands-on labs on quantizing large language models"
    site = Site(index, "All labs", {lab.name: lab.title for lab in labs if lab.name in found})
    pages = {index: site.page(title, filled("book.html", title=title, report=report, labs=rows), index)}
    private = str(report.get("workspace", ""))
    pages |= {f"{name}.html": site.lab_page(name, notebook, private) for name, notebook in found.items()}
    for name, text in pages.items():
        write_atomically(folder / name, text)
    return [folder / name for name in pages]


def cells_html(notebook: Any, link: Callable[[str], str | None]) -> str:
    """The cells of a notebook node with their outputs, without a page around them. Nothing in it is trusted.

    Left out: the cell that papermill put in, and all but the last state of a progress bar. link: see `Site.link`.
    """
    from nbconvert.exporters import HTMLExporter
    from nbconvert.filters.markdown_mistune import MarkdownWithMath

    notebook.cells = [c for c in notebook.cells if INJECTED not in c.get("metadata", {}).get("tags", [])]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                output.text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in output.text.split("\n"))
    exporter = HTMLExporter(template_name="cells", extra_template_basedirs=[str(TEMPLATES)])
    exporter.register_filter("markdown2html", lambda text: MarkdownWithMath(renderer=_renderer(link)).render(text))
    return str(exporter.from_notebook_node(notebook)[0])


def _renderer(link: Callable[[str], str | None]) -> Any:
    """nbconvert's Markdown, its formulas turned into MathML and its links into those of the page."""
    from latex2mathml.converter import convert
    from nbconvert.filters.markdown_mistune import IPythonRenderer

    class Renderer(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return str(convert(body.strip(), display="block"))

        def inline_math(self, body: str) -> str:
            return str(convert(body))

        def link(self, text: str, url: str, title: str | None = None) -> str:
            target = link(url)
            return text if target is None else str(super().link(text, target, title))

        def inline_html(self, html: str) -> str:
            return "" if html.strip().startswith("<!--") else str(super().inline_html(html))

        block_html = inline_html

        def table(self, text: str) -> str:
            return f'<div class="wide" tabindex="0"><table>{text}</table></div>\n'

    return Renderer(escape=True)
