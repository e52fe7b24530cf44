"""`python -m benchmarks [--full [--resume]] [--only NAME ...] [--runs N]`: measures, prints and keeps one table."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import readme, table
from benchmarks.measure import ROOT
from benchmarks.registry import BENCHMARKS, FULL_PAIRS, GROWTHS, QUICK
from benchmarks.results import RESULTS, Growth, Report, Result
from labkit.errors import LabError, MissingResult, UsageError
from labkit.hardware import stack_versions, this_machine
from labkit.ledger import utc_now
from labkit.workspace import write_atomically

QUICK_RUN = ROOT / "build" / "benchmarks.json"  # results.json is the last full run's, and no part of one replaces it
SO_FAR = ROOT / "build" / "benchmarks-so-far.json"  # a full run's, until it is whole


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if everything could be measured, bars met or not; 1 if a side failed."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    part = bool(arguments.only or arguments.runs or arguments.output)
    whole = arguments.full and not part
    names = arguments.only or [*(BENCHMARKS if arguments.full else QUICK), *(GROWTHS if arguments.full else ())]
    began, failures = time.monotonic(), []
    results: list[Result] = []
    growths: list[Growth] = []
    sittings = 1
    if arguments.resume:
        try:
            before = so_far() if whole else parser.error("--resume goes with --full and nothing else")
        except LabError as error:
            parser.error(str(error))
        began -= before.wall_seconds
        results, growths, sittings = list(before.results), list(before.growth), before.sittings + 1
    with tempfile.TemporaryDirectory(prefix="labkit-benchmarks-") as scratch:
        for name in names:
            if any(found.name == name for found in (*results, *growths)):  # before, or with another
                continue
            print(f"{name} ... ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
            folder = Path(scratch) / name
            folder.mkdir()
            load = round(os.getloadavg()[0], 2)
            try:
                if name in GROWTHS:
                    growths.append(replace(GROWTHS[name](folder), load=load))
                else:
                    runs = arguments.runs or (FULL_PAIRS.get(name) if arguments.full else None)
                    found = BENCHMARKS[name](folder, runs)
                    results += [replace(one, load=load) for one in (found if isinstance(found, list) else [found])]
            except LabError as error:
                failures.append(f"{name}: {error}")
            shutil.rmtree(folder, ignore_errors=True)  # models of gigabytes
            if whole:  # hours that are cut off have not been for nothing
                write_atomically(SO_FAR, _report(results, growths, began, sittings).to_json())
    print(table.terminal(results, growths))
    for failure in failures:
        print(f"\nNot measured: {failure}", file=sys.stderr)
    if failures and whole:
        print(f"The rest stands in {SO_FAR}; mend this, and go on with --full --resume.", file=sys.stderr)
    report = _report(results, growths, began, sittings)
    if arguments.output:
        Path(arguments.output).write_text(report.to_json(), encoding="utf-8")
    elif whole and not failures:
        RESULTS.write_text(report.to_json(), encoding="utf-8")
        SO_FAR.unlink()
        readme.main()
    elif not (part or whole or failures):
        write_atomically(QUICK_RUN, report.to_json())
        print(f"\n{QUICK_RUN}")
    return 1 if failures else 0


def _report(results: Sequence[Result], growths: Sequence[Growth], began: float, sittings: int) -> Report:
    spent = round(time.monotonic() - began, 1)
    order = [*BENCHMARKS, *GROWTHS]
    found = tuple(sorted(results, key=lambda result: order.index(result.name)))
    grown = tuple(sorted(growths, key=lambda growth: order.index(growth.name)))
    return Report(this_machine().label, stack_versions(), utc_now(), spent, found, grown, sittings)


def so_far() -> Report:
    """What a full run that did not become whole has measured.

    Raises MissingResult if there is none, UsageError if it is from another machine, stack or labkit than is here now.
    """
    if not SO_FAR.is_file():
        raise MissingResult(f"there is no {SO_FAR}", fix="start a full run: --full")
    found = Report.from_json(SO_FAR.read_text(encoding="utf-8"))
    written = SO_FAR.stat().st_mtime
    newer = [path for path in (ROOT / "labkit").rglob("*.py") if path.stat().st_mtime > written]
    other = [name for name, version in stack_versions().items() if found.versions.get(name) != version]
    if found.machine != this_machine().label or other or newer:
        what = ", ".join([*other, *map(str, newer)]) or found.machine
        raise UsageError(
            f"{SO_FAR} is of another machine, stack or labkit: {what}",
            why="one table is of one thing",
            fix="start a full run: --full",
        )
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures labkit against what it replaces. A run of everything (--full) writes results.json and "
        "README.md beside this; one without options, build/benchmarks.json; one of a part, what --output names.",
    )
    parser.add_argument("--full", action="store_true", help="everything, whatever it takes; else what takes minutes")
    everything = [*BENCHMARKS, *GROWTHS]
    parser.add_argument(
        "--resume", action="store_true", help="goes on with a full run that was cut off or had a failure"
    )
    parser.add_argument("--only", nargs="+", choices=everything, metavar="NAME", help=", ".join(everything))
    parser.add_argument("--runs", type=int, metavar="N", help="runs or pairs of each, in place of its own number")
    parser.add_argument("--output", metavar="FILE", help="write the results there, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
