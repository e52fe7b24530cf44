"""Writes labkit/paces.json, how long cells take, from the executed labs of a run.

python -m tools.paces              from the workspace's newest run
python -m tools.paces --report F   from the run of that report.json, and from more: --report F --report G
python -m tools.paces --check      writes nothing; fails if a time is of a cell that no lab has
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from labkit import pace
from labkit.errors import LabError
from labkit.workspace import write_atomically
from tools import notebooks
from tools.run_report import parser, reports


def stale() -> list[str]:
    """The labs of the file of which it knows cells that are not there any more."""
    found = []
    for profile, runs in json.loads(pace.SHIPPED.read_text(encoding="utf-8")).items():
        for lab, known in (item for run in runs for item in run["labs"].items()):
            path = notebooks.ROOT / "notebooks" / f"{lab}.ipynb"
            cells = notebooks.read(path)["cells"] if path.is_file() else []
            if set(known["cells"]) - {pace.cell_key(notebooks.source(cell)) for cell in cells}:
                found.append(f"{lab} ({profile})")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes or checks; exit code 1 if a check finds something or no run can be read."""
    options = parser("paces", "Write how long cells take.", check="a cell is gone")
    options.add_argument("--output", type=Path, default=pace.SHIPPED, help="the file to write")
    args = options.parse_args(arguments)
    if args.check:
        gone = stale()
        print(f"cells of {', '.join(gone)} have changed; run `make figures` after `make labs`" if gone else "current")
        return 1 if gone else 0
    try:
        measured = reports(args.report)
    except LabError as error:
        print(f"times of cells are left as they are: {error}", file=sys.stderr)
        return 1
    known = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {}
    for path, report in measured.items():
        labs = {
            lab["name"]: {"seconds": lab["seconds"], "cells": pace.cell_seconds(path.parent / lab["notebook"])}
            for lab in report["labs"]
        }
        run = {"level": report["level"], "date": report["started"][:10], "probe_seconds": report["probe_seconds"]}
        kept = [other for other in known.get(report["profile"], []) if other["level"] != report["level"]]
        known[report["profile"]] = [*kept, {**run, "labs": labs}]
    write_atomically(args.output, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
