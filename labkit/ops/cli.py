"""The command line: `labkit run` and the others. Each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from labkit.ops.commands import COMMANDS
from labkit.ops.startup import skip_grammar_of_addresses

WRONG_USE = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0 for success, 1 for failure, 2 for wrong use."""
    skip_grammar_of_addresses()
    words = list(sys.argv[1:] if argv is None else argv)
    top = argparse.ArgumentParser(
        prog="labkit",
        description="Labs on quantizing large language models: run them, show their results, examine this machine.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n" + "\n".join(f"  {name:<9}{command.about}" for name, command in COMMANDS.items()),
    )
    top.add_argument("command", choices=list(COMMANDS), help="`labkit COMMAND --help` tells more", metavar="COMMAND")
    name = top.parse_args(words[:1]).command
    command = COMMANDS[name]
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
    except OSError as error:  # no room, no permission, a file in a folder's place
        print(f"labkit {name}: the system says: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
