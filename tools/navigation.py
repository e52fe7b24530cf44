"""Writes what is generated in the labs: the navigation line, and the measured time in the header.

    python -m tools.navigation              navigation, and times from the newest run's report.json
    python -m tools.navigation --report F   times from that report, and from more: --report F --report G

The navigation line is a cell of its own under the header. The time stands in the header between two HTML comments,
which do not show:  **It takes** <!-- time -->2 min (avx2), 50 s (bf16); `tiny` profile, 2 cores, DATE<!-- /time -->
Times depend on the machine, so they are given for one level of CPU or for several: one report for each. What is
missing or stale is found by `tools.contract`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from labkit.errors import LabError, MissingResult
from labkit.pace import rounded_up
from labkit.store import find_workspace
from tools import notebooks

INDEX = "../README.md#the-labs"
MARK = "<!-- navigation: written by python -m tools.navigation -->"
TIME = re.compile(r"<!-- time -->(.*?)<!-- /time -->", re.DOTALL)
TAKES = r"\d+ (?:s|min) \([^()]+\)"
MEASURED = re.compile(rf"{TAKES}(?:, {TAKES})*; `\w+` profile, .+")


# --- runs, for all commands that write what was measured --------------------------------------------------------------


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """The options of a command that writes what runs measured."""
    made = argparse.ArgumentParser(prog=f"python -m tools.{module}", description=description)
    told = "report.json of a run; once for each level (default: the workspace's newest run)"
    made.add_argument("--report", type=Path, action="append", help=told)
    return made


def reports(given: Sequence[Path] | None) -> dict[Path, dict[str, Any]]:
    """The reports of these runs, or of the workspace's newest, by their files; see `report`."""
    return {path: report(path) for path in given or [find_workspace() / "runs" / "latest" / "report.json"]}


def report(path: Path) -> dict[str, Any]:
    """A run's report. Raises MissingResult if it is of no run, or of one that failed or left out or mixed labs."""
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


def where(runs: Iterable[dict[str, Any]]) -> str:
    """What runs were measured with, beside the level, which stands at each time: profile, cores, date."""
    cores = re.compile(r"\d+ cores?")
    facts = [(f"`{run['profile']}` profile", *cores.findall(run["machine"])[:1], run["started"][:10]) for run in runs]
    return ", ".join(" and ".join(dict.fromkeys(values)) for values in zip(*facts, strict=True))


# --- the generated lines ----------------------------------------------------------------------------------------------


def navigation_line(paths: Sequence[Path], place: int) -> str:
    """previous | index | next, for the lab at `place`."""
    links = [f"[All labs]({INDEX})"]
    if place > 0:
        links.insert(0, f"[← {notebooks.title(notebooks.read(paths[place - 1]))}]({paths[place - 1].name})")
    if place + 1 < len(paths):
        links.append(f"[{notebooks.title(notebooks.read(paths[place + 1]))} →]({paths[place + 1].name})")
    return f"{MARK}\n{' | '.join(links)}"


def navigation_cell(notebook: dict[str, Any]) -> dict[str, Any] | None:
    """The generated cell, or None."""
    return next((c for c in notebook["cells"] if notebooks.source(c).startswith("<!-- navigation")), None)


def measured_time(notebook: dict[str, Any]) -> str | None:
    """What stands between the header's two marks; None without marks."""
    found = TIME.search(notebooks.source(notebook["cells"][0]))
    return found[1] if found else None


def measured_texts(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Lab to time text, with the time of each run."""
    times: dict[str, list[str]] = {}
    for run in runs:
        for lab in run["labs"]:
            times.setdefault(lab["name"], []).append(f"{rounded_up(lab['seconds'])} ({run['level']})")
    return {name: f"{', '.join(found)}; {where(runs)}" for name, found in times.items()}


def write(path: Path, line: str, time: str | None) -> None:
    """Writes a lab with its line, in a cell under the header, and its time where one is given.

    Raises LabError if the header has no place for it.
    """
    notebook = notebooks.read(path)
    header, cell = notebook["cells"][0], navigation_cell(notebook)
    if cell is None:
        cell = {"cell_type": "markdown", "id": "navigation", "metadata": {}, "source": []}
        notebook["cells"].insert(1, cell)
    notebooks.set_source(cell, line)
    if time is not None:
        if measured_time(notebook) is None:
            fix = "write **It takes** <!-- time --><!-- /time --> there"
            raise LabError(f"the header of {path.name} has no place for the measured time", fix=fix)
        notebooks.set_source(header, TIME.sub(f"<!-- time -->{time}<!-- /time -->", notebooks.source(header)))
    path.write_text(notebooks.dumps(notebook), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1, and times as they were, if no run can be read."""
    options = parser("navigation", "Write the generated lines.")
    options.add_argument("--notebooks", type=Path, default=notebooks.LABS, help="folder of the labs")
    args = options.parse_args(arguments)
    paths = notebooks.lab_paths(args.notebooks)
    try:
        times = measured_texts(list(reports(args.report).values()))
    except LabError as error:
        print(f"times are left as they are: {error}", file=sys.stderr)
        times = {}
    for place, path in enumerate(paths):
        write(path, navigation_line(paths, place), times.get(path.stem))
    return 0 if times else 1


if __name__ == "__main__":
    sys.exit(main())
