"""Writes labkit/paces.json, how long cells take, from the executed labs of a run.

python -m tools.paces              from the workspace's newest run
python -m tools.paces --report F   from the run of that report.json
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
from tools.run_report import last_report, newest, parser


def stale() -> list[str]:
    """The labs of the file of which it knows cells that are not there any more."""
    found = []
    for profile, labs in json.loads(pace.SHIPPED.read_text(encoding="utf-8")).items():
        for lab, known in labs.items():
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
        report, folder = last_report(args.report), newest(args.report).parent
    except LabError as error:
        print(f"times of cells are left as they are: {error}", file=sys.stderr)
        return 1
    known = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else {}
    machine = ", ".join(part for part in report["machine"].split(", ") if "+" not in part and part != "no GPU")
    known[report["profile"]] = {
        lab["name"]: {"machine": machine, "cells": pace.cell_seconds(folder / lab["notebook"])}
        for lab in report["labs"]
    }
    write_atomically(args.output, json.dumps(known, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
