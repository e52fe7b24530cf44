"""`labkit results` and `labkit doctor`: what was measured, and what this machine can do."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from labkit.ops.commands.command import Command, common_options, workspace_option

if TYPE_CHECKING:
    from labkit.ledger import Measurement


def _results_options(parser: argparse.ArgumentParser) -> None:
    workspace_option(parser)
    parser.add_argument("--lines", action="store_true", help="print every headline figure of the ledger instead")
    parser.add_argument("--picture", default="", metavar="FILE", help="draw accuracy against size and speed, as PNG")
    parser.add_argument("--json", action="store_true", help="print a JSON object: variants and headlines")


def _results(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict
    from pathlib import Path

    from labkit.errors import MissingResult
    from labkit.ops.text import table
    from labkit.scorecard import cells, picture, scorecard
    from labkit.workspace import Workspace, find_workspace

    workspace = Workspace(find_workspace(arguments.workspace, Path.cwd()))
    headlines, rows = workspace.ledger.headlines(), scorecard(workspace)
    if arguments.json:
        found = {"variants": [asdict(row) for row in rows], "headlines": [asdict(line) for line in headlines]}
        print(json.dumps(found, indent=2))
    elif headlines and (arguments.lines or not rows):
        print(_lines(headlines))
    elif rows:
        shown = [cells(row) for row in rows]
        print(table(list(shown[0]), [list(row.values()) for row in shown], right=(2, 3, 4, 5, 6, 8, 9, 10)))
    else:
        print(f"{workspace.root} holds no results yet; `labkit run` makes them")
    if arguments.picture:
        drawn = picture(rows)
        if not drawn:
            raise MissingResult("nothing was evaluated in this workspace", fix="labkit run 03, then draw it again")
        drawn.drawing.savefig(arguments.picture, format="png", dpi=110)
        print(f"\n{arguments.picture}: {drawn.description}")
    return 0


def _lines(headlines: Sequence[Measurement]) -> str:
    from labkit.ops.text import number, table

    header = ["model", "variant", "task", "metric", "value", "unit", "n", "lab", "measured"]
    rows = []
    for m in headlines:
        value = number(m.value, m.stderr)
        rows.append([m.model, m.variant, m.task, m.metric, value, m.unit, str(m.n or ""), m.lab, m.time[:16]])
    return table(header, rows, right=(4, 6))


def _doctor_options(parser: argparse.ArgumentParser) -> None:
    common_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _doctor(arguments: argparse.Namespace) -> int:
    from labkit.ops.doctor import diagnose, render
    from labkit.ops.prepare import Request, prepare

    request = Request(
        profile=arguments.profile,
        workspace=arguments.workspace,
        parameters=tuple((name, value) for name, value in arguments.parameters),
    )
    prepared = prepare(request)
    model = str(prepared.parameters.get("model") or os.environ.get("LABKIT_MODEL", ""))
    data = str(prepared.parameters.get("data") or os.environ.get("LABKIT_DATA", ""))
    found = diagnose(prepared.labs, prepared.profile, model, prepared.workspace.root, data)
    print(json.dumps(found.as_json(), indent=2) if arguments.json else render(found))
    return 0 if found.all_labs_run else 1


RESULTS = Command("print the scorecard of a workspace: every variant that was made", _results_options, _results)
DOCTOR = Command("say what this machine can do and which labs will run", _doctor_options, _doctor)
