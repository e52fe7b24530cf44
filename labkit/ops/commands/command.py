"""What a command of the command line is, and the options that several have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple


class Command(NamedTuple):
    """One command: what it does in a line, its options, its work (returning the exit code).

    passed_on: whose options may stand after `--`; they come to `work` as `arguments.passed_on`.
    """

    about: str
    options: Callable[[argparse.ArgumentParser], None]
    work: Callable[[argparse.Namespace], int]
    passed_on: str = ""


def common_options(parser: argparse.ArgumentParser) -> None:
    """Profile, workspace and parameters of the labs."""
    parser.add_argument("--profile", default="", help="tiny or workbench (default: $LABKIT_PROFILE, else tiny)")
    workspace_option(parser)
    parser.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter of the labs, such as `-p limit 20` or `-p model FOLDER`; may be repeated",
    )


def workspace_option(parser: argparse.ArgumentParser) -> None:
    """Which workspace."""
    parser.add_argument("--workspace", default="", help="folder (default: $LABKIT_WORKSPACE, else workspace/)")
