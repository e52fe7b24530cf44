"""`python -m benchmarks [--only NAME ...] [--runs N]`: measures, prints one table, keeps what was measured."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import (
    calibrating,
    evaluating,
    exploring,
    piping,
    quantizing,
    readme,
    simulating,
    starting,
    table,
    transferring,
)
from benchmarks.results import RESULTS, Report, Result
from labkit.errors import LabError
from labkit.hardware import stack_versions, this_machine
from labkit.ledger import utc_now

# A benchmark gets a scratch folder of its own and how often to run (None: as often as it deems right).
Benchmark = Callable[[Path, int | None], Result]
BENCHMARKS: dict[str, Benchmark] = {
    "import": starting.run_import,
    "help": starting.run_help,
    quantizing.FP8.name: quantizing.FP8.run,
    quantizing.GPTQ.name: quantizing.GPTQ.run,
    calibrating.NAME: calibrating.run,
    evaluating.NAME: evaluating.run,
    piping.NAME: piping.run,
    "simulated": simulating.run_layer,
    "grid": simulating.run_grid,
    "lorc": simulating.run_lorc,
    exploring.NAME: exploring.run,
    "s3-send": transferring.run_send,
    "s3-bring": transferring.run_bring,
    "labs": starting.run_labs,
    "setup": starting.run_setup,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if everything could be measured, bars met or not; 1 if a side failed."""
    arguments = _parser().parse_args(argv)
    names = arguments.only or list(BENCHMARKS)
    began, results, failures = time.monotonic(), [], []
    with tempfile.TemporaryDirectory(prefix="labkit-benchmarks-") as scratch:
        for name in names:
            print(f"{name} ...", file=sys.stderr, flush=True)
            folder = Path(scratch) / name
            folder.mkdir()
            try:
                load = os.getloadavg()[0]
                results.append(replace(BENCHMARKS[name](folder, arguments.runs), load=round(load, 2)))
            except LabError as error:
                failures.append(f"{name}: {error}")
    if results:
        print(table.terminal(results))
    for failure in failures:
        print(f"\nNot measured: {failure}", file=sys.stderr)
    report = Report(
        this_machine().label, stack_versions(), utc_now(), round(time.monotonic() - began, 1), tuple(results)
    )
    if arguments.output:
        Path(arguments.output).write_text(report.to_json(), encoding="utf-8")
    elif not failures and not arguments.only and arguments.runs is None:
        RESULTS.write_text(report.to_json(), encoding="utf-8")
        readme.main()
    return 1 if failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures labkit against what it replaces. A full run writes results.json and README.md beside "
        "this; one with --only or --runs writes nothing unless --output says where.",
    )
    parser.add_argument("--only", nargs="+", choices=list(BENCHMARKS), metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--runs", type=int, metavar="N", help="runs or pairs of each, in place of its own number")
    parser.add_argument("--output", metavar="FILE", help="write the results there, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
