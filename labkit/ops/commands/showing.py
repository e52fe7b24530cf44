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
    parser.add_argument("--json", action="store_true", help="print a JSON list of ledger lines")


def _results(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict
    from pathlib import Path

    from labkit.workspace import Workspace, find_workspace

    ledger = Workspace(find_workspace(arguments.workspace, Path.cwd())).ledger
    headlines = ledger.headlines()
    if arguments.json:
        print(json.dumps([asdict(measurement) for measurement in headlines], indent=2))
    elif not headlines:
        print(f"{ledger.path} holds no results yet; `labkit run` makes them")
    else:
        print(_results_table(headlines))
    return 0


def _results_table(headlines: Sequence[Measurement]) -> str:
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


RESULTS = Command("print the headline results of a workspace", _results_options, _results)
DOCTOR = Command("say what this machine can do and which labs will run", _doctor_options, _doctor)
