"""The command line: `labkit run` and the others. Each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from labkit.ledger import Measurement

WRONG_USE = 2


class Command(NamedTuple):
    """One command: what it does in a line, its options, its work (returning the exit code).

    passed_on: whose options may stand after `--`; they come to `work` as `arguments.passed_on`.
    """

    about: str
    options: Callable[[argparse.ArgumentParser], None]
    work: Callable[[argparse.Namespace], int]
    passed_on: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0 for success, 1 for failure, 2 for wrong use."""
    words = list(sys.argv[1:] if argv is None else argv)
    top = argparse.ArgumentParser(
        prog="labkit",
        description="Labs on quantizing large language models: run them, show their results, examine this machine.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n" + "\n".join(f"  {name:<9}{command.about}" for name, command in COMMANDS.items()),
    )
    top.add_argument("command", choices=list(COMMANDS), help="`labkit COMMAND --help` tells more", metavar="COMMAND")
    name = top.parse_args(words[:1]).command
    command: Command = COMMANDS[name]
    own, passed_on = words[1:], None
    if command.passed_on and "--" in own:
        own, passed_on = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(
        prog=f"labkit {name}",
        description=command.about,
        allow_abbrev=False,
        epilog=f"After `--` may stand options of `{command.passed_on}`." if command.passed_on else None,
    )
    command.options(parser)
    arguments = parser.parse_intermixed_args(own)  # so that labs and options may stand in any order
    arguments.passed_on = passed_on or []
    from labkit.errors import LabError, UsageError

    try:
        return command.work(arguments)
    except UsageError as error:
        print(f"labkit {name}: {error}", file=sys.stderr)
        return WRONG_USE
    except LabError as error:
        print(f"labkit {name}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before a run began; a run itself stops in order and reports
        return 130
    except BrokenPipeError:  # `labkit results | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="", help="tiny or workbench (default: $LABKIT_PROFILE, else tiny)")
    _workspace_option(parser)
    parser.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter of the labs, such as `-p limit 20` or `-p model FOLDER`; may be repeated",
    )


def _workspace_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workspace", default="", help="folder (default: $LABKIT_WORKSPACE, else workspace/)")


def _run_options(parser: argparse.ArgumentParser) -> None:
    from labkit.ops.prepare import DEFAULT_TIMEOUT_SECONDS

    parser.add_argument("labs", nargs="*", metavar="LAB", help="a lab's name or number: 01_fp8_rtn or 1; default: all")
    _common_options(parser)
    parser.add_argument("--output", default="", help="folder of the report (default: a new one under WORKSPACE/runs/)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="labs that run at the same time (default: 1)")
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


def _results_options(parser: argparse.ArgumentParser) -> None:
    _workspace_option(parser)
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
    _common_options(parser)
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
    found = diagnose(prepared.labs, prepared.profile, model, prepared.workspace.root)
    print(json.dumps(found.as_json(), indent=2) if arguments.json else render(found))
    return 0 if found.all_labs_run else 1


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


def _serve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or a name in WORKSPACE/checkpoints/")
    parser.add_argument("--profile", default="", help="whose engine settings count (default: $LABKIT_PROFILE, or tiny)")
    _workspace_option(parser)
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1 (default: any free one)")
    parser.add_argument("--eager", action="store_true", help="start at once, without compiling: slower answers")


def _serve(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from labkit.ops.serve import serve_until_stopped
    from labkit.profiles import get_profile
    from labkit.workspace import Workspace, find_workspace

    return serve_until_stopped(
        arguments.checkpoint,
        get_profile(arguments.profile),
        Workspace(find_workspace(arguments.workspace, Path.cwd())),
        port=arguments.port,
        eager=arguments.eager,
        options=arguments.passed_on,
        tell=lambda line: print(line, flush=True),
    )


COMMANDS = {
    "run": Command("run labs and report", _run_options, _run),
    "results": Command("print the headline results of a workspace", _results_options, _results),
    "doctor": Command("say what this machine can do and which labs will run", _doctor_options, _doctor),
    "labs": Command("list the labs", _labs_options, _labs),
    "serve": Command("serve a checkpoint on loopback until Ctrl-C", _serve_options, _serve, "vllm serve"),
}

if __name__ == "__main__":
    sys.exit(main())
