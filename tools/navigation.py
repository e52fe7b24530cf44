"""Writes what is generated in the labs: the navigation line, and the measured time in the header.

    python -m tools.navigation              navigation, and times from the newest run's report.json
    python -m tools.navigation --report F   times from that report, and from more: --report F --report G
    python -m tools.navigation --check      writes nothing; fails if a line is missing or not what it would become

The navigation line is a cell of its own under the header. The time stands in the header between two HTML comments,
which do not show:  **It takes** <!-- time -->2 min (avx2), 50 s (bf16); `tiny` profile, 2 cores, DATE<!-- /time -->
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.pace import rounded_up
from tools import notebooks
from tools.run_report import parser, reports, where

INDEX = "../README.md#the-labs"
MARK = "<!-- navigation: written by python -m tools.navigation -->"
TIME = re.compile(r"<!-- time -->(.*?)<!-- /time -->", re.DOTALL)
TAKES = r"\d+ (?:s|min) \([^()]+\)"
MEASURED = re.compile(rf"{TAKES}(?:, {TAKES})*; `\w+` profile, .+")


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
    cells = [cell for cell in notebook["cells"] if notebooks.source(cell).startswith("<!-- navigation")]
    return cells[0] if cells else None


def with_navigation(notebook: dict[str, Any], line: str) -> dict[str, Any]:
    """The notebook with the line in its cell, which is made under the header if it is not there."""
    cell = navigation_cell(notebook)
    if cell is None:
        cell = {"cell_type": "markdown", "id": "navigation", "metadata": {}, "source": []}
        notebook["cells"].insert(1, cell)
    notebooks.set_source(cell, line)
    return notebook


def measured_time(notebook: dict[str, Any]) -> str | None:
    """What stands between the header's two marks; None without marks."""
    found = TIME.search(notebooks.source(notebook["cells"][0]))
    return found[1] if found else None


def with_time(notebook: dict[str, Any], text: str) -> dict[str, Any]:
    """The notebook with that time in its header; raises LabError without the marks."""
    header = notebook["cells"][0]
    if not TIME.search(notebooks.source(header)):
        fix = "write **It takes** <!-- time --><!-- /time --> there"
        raise LabError(f"the header of {notebooks.title(notebook)!r} has no place for the measured time", fix=fix)
    notebooks.set_source(header, TIME.sub(lambda _: f"<!-- time -->{text}<!-- /time -->", notebooks.source(header)))
    return notebook


def measured_texts(runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Lab to time text, with the time of each run."""
    times: dict[str, list[str]] = {}
    for run in runs:
        for lab in run["labs"]:
            times.setdefault(lab["name"], []).append(f"{rounded_up(lab['seconds'])} ({run['level']})")
    return {name: f"{', '.join(found)}; {where(runs)}" for name, found in times.items()}


def problems(paths: Sequence[Path]) -> list[str]:
    """What --check finds: a sentence for each line that is missing or stale."""
    found = []
    for place, path in enumerate(paths):
        notebook = notebooks.read(path)
        cell = navigation_cell(notebook)
        if cell is None or notebooks.source(cell) != navigation_line(paths, place):
            found.append(f"{path.name}: the navigation line is missing or stale; run `python -m tools.navigation`")
        if not MEASURED.fullmatch(measured_time(notebook) or ""):
            found.append(f"{path.name}: no measured time in the header; run `make labs`, `python -m tools.navigation`")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes or checks; exit code 1 if a check finds something or no run can be read."""
    options = parser("navigation", "Write the generated lines.", check="a line is missing or stale")
    options.add_argument("--notebooks", type=Path, default=notebooks.LABS, help="folder of the labs")
    args = options.parse_args(arguments)
    paths = notebooks.lab_paths(args.notebooks)
    if args.check:
        found = problems(paths)
        print("\n".join(found) or "The generated lines are current.")
        return 1 if found else 0
    try:
        times = measured_texts(list(reports(args.report).values()))
    except LabError as error:
        print(f"times are left as they are: {error}", file=sys.stderr)
        times = {}
    for place, path in enumerate(paths):
        notebook = with_navigation(notebooks.read(path), navigation_line(paths, place))
        if path.stem in times:
            notebook = with_time(notebook, times[path.stem])
        path.write_text(notebooks.dumps(notebook), encoding="utf-8")
    return 0 if times else 1


if __name__ == "__main__":
    sys.exit(main())
