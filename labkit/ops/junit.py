"""The report of a run as JUnit XML, for what collects test results."""

from __future__ import annotations

from xml.etree import ElementTree

from labkit.ops.records import LabResult, RunReport
from labkit.ops.text import plain


def junit_xml(report: RunReport) -> str:
    """One test suite, one test case for each lab.

    failed is a failure, timeout and dead-kernel are errors. A lab skipped for anything but this machine's capabilities
    is an error too, so that a collector is red exactly when the run's exit code is not 0.
    """
    suite = ElementTree.Element("testsuite", name=f"labkit-{report.profile}", timestamp=report.started)
    counts = dict.fromkeys(("failure", "error", "skipped"), 0)
    for lab in report.labs:
        case = ElementTree.SubElement(suite, "testcase", classname="labs", name=lab.name, time=f"{lab.seconds:.3f}")
        tag = _tag(lab)
        if tag:
            counts[tag] += 1
            element = ElementTree.SubElement(case, tag, message=plain(lab.reason))
            if tag != "skipped":
                element.set("type", lab.verdict)
                element.text = plain(_details(lab))
        elif lab.skipped:
            parts = "".join(f"left out: {skip.part}: {skip.reason}\n" for skip in lab.skipped)
            ElementTree.SubElement(case, "system-out").text = plain(parts)
    totals = {"tests": len(report.labs), "failures": counts["failure"], "errors": counts["error"]}
    for name, count in {**totals, "skipped": counts["skipped"]}.items():
        suite.set(name, str(count))
    suite.set("time", f"{report.seconds:.3f}")
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _tag(lab: LabResult) -> str:
    if lab.verdict == "passed":
        return ""
    if lab.verdict == "skipped":
        return "skipped" if lab.capability else "error"
    return "failure" if lab.verdict == "failed" else "error"


def _details(lab: LabResult) -> str:
    if lab.failure is None:
        return lab.reason
    parts = (lab.failure.where, lab.failure.error, lab.failure.traceback, f"end of the log:\n{lab.failure.log_tail}")
    return "\n\n".join(filter(None, parts))
