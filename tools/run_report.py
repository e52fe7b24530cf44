"""The last run's report.json, for the commands that write measured figures into notebooks and README."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from labkit.errors import MissingResult
from labkit.workspace import find_workspace


def parser(module: str, description: str, check: str) -> argparse.ArgumentParser:
    """The options of a command that writes from a run: where its report is, or to check only, which fails if ..."""
    made = argparse.ArgumentParser(prog=f"python -m tools.{module}", description=description)
    made.add_argument("--check", action="store_true", help=f"write nothing; fail if {check}")
    made.add_argument("--report", default="", help="report.json (default: of the workspace's newest run)")
    return made


def newest(given: str = "") -> Path:
    """Where the report is: `given`, else that of the workspace's newest run."""
    return Path(given) if given else find_workspace() / "runs" / "latest" / "report.json"


def last_report(given: str = "") -> dict[str, Any]:
    """The report of a complete, successful run: `given`, else the newest of the workspace.

    Raises MissingResult if there is none, or if it is of a run that failed or did not hold all labs' own times.
    """
    path = newest(given)
    if not path.is_file():
        raise MissingResult(f"there is no {path}", why="figures are taken from a run, never typed", fix="make labs")
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    failed = [lab["name"] for lab in report["labs"] if lab["verdict"] != "passed"]
    if failed or not report["complete"]:
        raise MissingResult(f"{path}: the run did not pass ({', '.join(failed) or 'not complete'})", fix="make labs")
    unchanged = [lab["name"] for lab in report["labs"] if lab.get("unchanged")]
    if unchanged or report.get("jobs", 1) > 1:
        how = f"{', '.join(unchanged)} did not run in it" if unchanged else "labs ran side by side in it"
        raise MissingResult(f"{path}: {how}", why="times are those of a run of all labs, one by one", fix="make labs")
    return report
