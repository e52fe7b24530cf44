"""`labkit run` and `labkit labs`: run labs and report, and say which there are."""

from __future__ import annotations

import argparse
import json

from labkit.ops.commands.command import Command, common_options, workspace_option


def _run_options(parser: argparse.ArgumentParser) -> None:
    from labkit.ops.prepare import DEFAULT_TIMEOUT_SECONDS

    parser.add_argument("labs", nargs="*", metavar="LAB", help="a lab's name or number: 01_fp8_rtn or 1; default: all")
    common_options(parser)
    parser.add_argument("--output", default="", help="folder of the report (default: a new one under WORKSPACE/runs/)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="labs that run at the same time (default: 1)")
    parser.add_argument(
        "--only-changed",
        action="store_true",
        help="leave labs alone that passed here before, if nothing that goes into them has changed",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_SECONDS,
        metavar="SECONDS",
        help=f"the longest that one lab may take (default: {DEFAULT_TIMEOUT_SECONDS:.0f})",
    )


def _run(arguments: argparse.Namespace) -> int:
    from labkit.ops.prepare import Request, prepare

    prepared = prepare(
        Request(
            labs=tuple(arguments.labs),
            profile=arguments.profile,
            workspace=arguments.workspace,
            output=arguments.output,
            jobs=arguments.jobs,
            timeout_seconds=arguments.timeout,
            only_changed=arguments.only_changed,
            parameters=tuple((name, value) for name, value in arguments.parameters),
        )
    )
    from labkit.ops.report import result_table
    from labkit.ops.runner import execute
    from labkit.ops.signals import exit_code

    report, output = execute(prepared, tell=lambda line: print(line, flush=True))
    print(f"\n{result_table(report)}\n\n{output / 'report.html'}", flush=True)
    if report.stopped:
        return exit_code(report.stopped)
    return 0 if report.succeeded else 1


def _labs_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON list")


def _labs(arguments: argparse.Namespace) -> int:
    from labkit.ops.notebooks import find_labs, find_notebooks
    from labkit.ops.text import table

    labs = find_labs(find_notebooks())
    if arguments.json:
        keys = ("name", "title", "needs", "makes", "parameters")
        print(json.dumps([{key: getattr(lab, key) for key in keys} for lab in labs], indent=2))
    else:
        rows = [[lab.name, ", ".join(lab.needs), ", ".join(lab.makes), lab.title] for lab in labs]
        print(table(["lab", "needs", "makes", "title"], rows))
    return 0


def _book_options(parser: argparse.ArgumentParser) -> None:
    workspace_option(parser)
    parser.add_argument("--run", default="", metavar="FOLDER", help="a run's folder (default: the workspace's latest)")
    parser.add_argument("--output", default="book", metavar="FOLDER", help="where the pages go (default: book)")


def _book(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from labkit.ops.notebooks import find_labs, find_notebooks
    from labkit.ops.pages import write_book
    from labkit.workspace import Workspace, find_workspace

    notebooks = find_notebooks()
    latest = Workspace(find_workspace(arguments.workspace, notebooks)).runs / "latest"
    run = Path(arguments.run).expanduser() if arguments.run else latest.resolve()
    pages = write_book(find_labs(notebooks), run, Path(arguments.output).expanduser())
    print(f"{len(pages)} pages of the run {run.name}\n{pages[0].absolute()}")
    return 0


RUN = Command("run labs and report", _run_options, _run)
BOOK = Command("make a static site of the labs that a run executed", _book_options, _book)
LABS = Command("list the labs", _labs_options, _labs)
