"""The report of a run: JSON for programs, HTML for people, JUnit XML for CI, a table for the terminal."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from labkit.ops.junit import junit_xml
from labkit.ops.pages import Site, filled
from labkit.ops.records import RunReport
from labkit.ops.text import duration, number, size, table
from labkit.workspace import write_atomically


def write_report(report: RunReport, folder: Path) -> None:
    """Writes the three files, each replaced whole."""
    write_atomically(folder / "report.json", json.dumps(asdict(report), indent=2) + "\n")
    write_atomically(folder / "report.html", html(report))
    write_atomically(folder / "junit.xml", junit_xml(report))


def html(report: RunReport) -> str:
    """The report as one HTML page that needs no other file: styles inside, everything from the run escaped."""
    failures = [lab for lab in report.labs if not lab.acceptable and lab.failure]
    title = f"labkit run {report.run}: {'passed' if report.succeeded else 'not passed'}"
    body = filled("report", report=report, failures=failures)
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
