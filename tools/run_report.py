"""The report.json of runs, for the commands that write measured figures into notebooks and README.

Times depend on the machine, so they are given for one level of CPU or for several: one report for each.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from labkit.errors import MissingResult
from labkit.workspace import find_workspace


def parser(module: str, description: str, check: str) -> argparse.ArgumentParser:
    """The options of a command that writes from a run: where its report is, or to check only, which fails if ..."""
    made = argparse.ArgumentParser(prog=f"python -m tools.{module}", description=description)
    made.add_argument("--check", action="store_true", help=f"write nothing; fail if {check}")
    made.add_argument(
        "--report",
        type=Path,
        action="append",
        help="report.json of a run; once for each level (default: the workspace's newest run)",
    )
    return made


def reports(given: Sequence[Path] | None) -> dict[Path, dict[str, Any]]:
    """The reports of these runs, or of the workspace's newest, by their files; see `report`."""
    return {path: report(path) for path in given or [find_workspace() / "runs" / "latest" / "report.json"]}


def where(runs: Iterable[dict[str, Any]]) -> str:
    """What runs were measured with, beside the level, which stands at each time: profile, cores, date."""
    cores = re.compile(r"\d+ cores?")
    facts = [(f"`{run['profile']}` profile", *cores.findall(run["machine"])[:1], run["started"][:10]) for run in runs]
    return ", ".join(" and ".join(dict.fromkeys(values)) for values in zip(*facts, strict=True))


def report(path: Path) -> dict[str, Any]:
    """The report of a complete, successful run.

    Raises MissingResult if there is none, or if it is of a run that failed or did not hold all labs' own times.
    """
    if not path.is_file():
        raise MissingResult(f"there is no {path}", why="figures are taken from a run, never typed", fix="make labs")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    failed = [lab["name"] for lab in found["labs"] if lab["verdict"] != "passed"]
    if failed or not found["complete"]:
        raise MissingResult(f"{path}: the run did not pass ({', '.join(failed) or 'not complete'})", fix="make labs")
    unchanged = [lab["name"] for lab in found["labs"] if lab.get("unchanged")]
    if unchanged or found.get("jobs", 1) > 1:
        how = f"{', '.join(unchanged)} did not run in it" if unchanged else "labs ran side by side in it"
        raise MissingResult(f"{path}: {how}", why="times are those of a run of all labs, one by one", fix="make labs")
    return found
