"""`python -m benchmarks [--full] [--only NAME ...] [--runs N]`: measures, prints one table, keeps what was measured."""

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
from labkit.errors import LabError
from labkit.hardware import stack_versions, this_machine
from labkit.ledger import utc_now

SO_FAR = ROOT / "build" / "benchmarks-so-far.json"  # beside what else make builds; nothing reads it


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if everything could be measured, bars met or not; 1 if a side failed."""
    arguments = _parser().parse_args(argv)
    names = arguments.only or [*(BENCHMARKS if arguments.full else QUICK), *(GROWTHS if arguments.full else ())]
    began, failures = time.monotonic(), []
    results: list[Result] = []
    growths: list[Growth] = []
    with tempfile.TemporaryDirectory(prefix="labkit-benchmarks-") as scratch:
        for name in names:
            if any(result.name == name for result in results):  # it came with another
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
            SO_FAR.parent.mkdir(exist_ok=True)  # a run of hours that is cut off has not been for nothing
            SO_FAR.write_text(_report(results, growths, began).to_json(), encoding="utf-8")
    print(table.terminal(results, growths))
    for failure in failures:
        print(f"\nNot measured: {failure}", file=sys.stderr)
    if failures:
        print(f"What was measured stands in {SO_FAR}.", file=sys.stderr)
    report = _report(results, growths, began)
    if arguments.output:
        Path(arguments.output).write_text(report.to_json(), encoding="utf-8")
    elif not failures and arguments.full and not arguments.only and arguments.runs is None:
        RESULTS.write_text(report.to_json(), encoding="utf-8")
        readme.main()
    return 1 if failures else 0


def _report(results: Sequence[Result], growths: Sequence[Growth], began: float) -> Report:
    spent = round(time.monotonic() - began, 1)
    return Report(this_machine().label, stack_versions(), utc_now(), spent, tuple(results), tuple(growths))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures labkit against what it replaces. A run of everything (--full) writes results.json and "
        "README.md beside this; any other one writes nothing unless --output says where.",
    )
    parser.add_argument("--full", action="store_true", help="everything, whatever it takes; else what takes minutes")
    everything = [*BENCHMARKS, *GROWTHS]
    parser.add_argument("--only", nargs="+", choices=everything, metavar="NAME", help=", ".join(everything))
    parser.add_argument("--runs", type=int, metavar="N", help="runs or pairs of each, in place of its own number")
    parser.add_argument("--output", metavar="FILE", help="write the results there, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
