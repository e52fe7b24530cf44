"""`python -m benchmarks [--full] [--only NAME ...] [--runs N] [--keep]`: measures, and prints one table."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks import evaluating, quantizing, running, serving, table
from benchmarks.measure import RESULTS, Growth, Report, Result
from labkit.errors import LabError
from labkit.hardware import stack_versions, this_machine
from labkit.ledger import utc_now

# A benchmark gets a scratch folder of its own and how often to run (None: as often as it deems right). One that answers
# for two names gives the results of both.
Benchmark = Callable[[Path, int | None], list[Result]]
QUICK: dict[str, Benchmark] = {
    "import": running.run_import,
    "help": running.run_help,
    "fp8": quantizing.FP8.run,
    "gptq": quantizing.GPTQ.run,
    "evaluate": evaluating.run,
}
BENCHMARKS: dict[str, Benchmark] = QUICK | {
    "fp8-shards": quantizing.SHARDS.run,
    "gptq-0.4b": quantizing.LARGE_GPTQ.run,
    "serve": partial(serving.run, "serve"),
    "serve-decode": partial(serving.run, "serve"),
    "serve-deep": partial(serving.run, "serve-deep"),
    "serve-deep-decode": partial(serving.run, "serve-deep"),
    "labs": running.run_first,
    "labs-unchanged": running.run_unchanged,
    "setup": running.run_setup,
}
GROWTHS: dict[str, Callable[[Path], Growth]] = {
    "growth-fp8": partial(quantizing.grow, "fp8_shards", "growth-fp8"),
    "growth-int8": partial(quantizing.grow, "gptq", "growth-int8"),
    "growth-evaluation": evaluating.grow,
    "growth-ledger": running.grow_ledger,
    "growth-report": running.grow_report,
}
ALL = (*BENCHMARKS, *GROWTHS)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 if everything could be measured, bars met or not; 1 if a side failed."""
    arguments = _parser().parse_args(argv)
    found, began, failures = Report(this_machine().label, stack_versions()), time.monotonic(), []
    for name in arguments.only or (ALL if arguments.full else QUICK):
        if name in found.names:  # with another
            continue
        print(f"{name} ... ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
        load = round(os.getloadavg()[0], 2)
        with tempfile.TemporaryDirectory(prefix="labkit-benchmarks-") as scratch:
            try:
                new = (
                    GROWTHS[name](Path(scratch)) if name in GROWTHS else BENCHMARKS[name](Path(scratch), arguments.runs)
                )
            except LabError as error:
                failures.append(f"{name}: {error}")
                continue
        for one in new if isinstance(new, list) else [new]:
            found = found.having(replace(one, load=load, date=utc_now()[:10]))
        if arguments.keep:  # at once: hours that are cut off have not been for nothing
            keep(found)
    print(table.terminal(found))
    for failure in failures:
        print(f"\nNot measured: {failure}", file=sys.stderr)
    if arguments.output:
        Path(arguments.output).write_text(found.to_json(), encoding="utf-8")
    return 1 if failures else 0


def keep(found: Report) -> None:
    """Puts results in the place of older ones of their names in results.json, and writes README.md anew.

    What results.json has of another machine or stack goes: one table is of one thing.
    """
    kept = Report.from_json(RESULTS.read_text(encoding="utf-8"))
    if (kept.machine, kept.versions) != (found.machine, found.versions):
        kept = replace(found, results=(), growth=())
    new: list[Result | Growth] = [*found.results, *found.growth]
    for one in new:
        kept = kept.having(one)
    RESULTS.write_text(kept.to_json(), encoding="utf-8")
    table.README.write_text(table.readme(kept, ALL), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measures labkit against what it replaces."
    )
    parser.add_argument("--full", action="store_true", help="everything, whatever it takes; else what takes minutes")
    parser.add_argument("--only", nargs="+", choices=ALL, metavar="NAME", help=", ".join(ALL))
    parser.add_argument("--runs", type=int, metavar="N", help="runs or pairs of each, in place of its own number")
    parser.add_argument("--keep", action="store_true", help="put what is found into results.json and README.md")
    parser.add_argument("--output", metavar="FILE", help="write it there, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
