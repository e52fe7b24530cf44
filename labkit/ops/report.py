"""The report of a run: JSON for programs, HTML for people, JUnit XML for CI, a table for the terminal."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.ops.junit import junit_xml
from labkit.ops.records import RunReport
from labkit.ops.text import duration, number, size, table
from labkit.workspace import write_atomically

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATE = Path(__file__).with_name("report.html")


def write_report(report: RunReport, folder: Path) -> None:
    """Writes the three files, each replaced whole."""
    write_atomically(folder / "report.json", json.dumps(asdict(report), indent=2) + "\n")
    write_atomically(folder / "report.html", html(report))
    write_atomically(folder / "junit.xml", junit_xml(report))


def html(report: RunReport) -> str:
    """The report as one HTML page that needs no other file: styles inside, everything from the run escaped."""
    return _template().render(
        report=report, failures=[lab for lab in report.labs if not lab.acceptable and lab.failure]
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(size=size, duration=duration, number=number)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


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
    return "\n".join([*lines, *report.notes])
