"""All that can be measured, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    calibrating,
    curriculum,
    evaluating,
    exploring,
    growing,
    piping,
    quantizing,
    serving,
    simulating,
    starting,
    transferring,
)
from benchmarks.results import Growth, Result

# A benchmark gets a scratch folder of its own and how often to run (None: as often as it deems right). One that answers
# for several names gives all of their results at once.
Benchmark = Callable[[Path, int | None], Result | list[Result]]
QUICK: dict[str, Benchmark] = {
    "import": starting.run_import,
    "help": starting.run_help,
    quantizing.FP8.name: quantizing.FP8.run,
    quantizing.GPTQ.name: quantizing.GPTQ.run,
    calibrating.NAME: calibrating.run,
    evaluating.NAME: evaluating.run,
    "simulated": simulating.run_layer,
    exploring.NAME: exploring.run,
}
LONG: dict[str, Benchmark] = {
    quantizing.SHARDS.name: quantizing.SHARDS.run,
    quantizing.LARGE_GPTQ.name: quantizing.LARGE_GPTQ.run,
    serving.WIDE.overall: serving.WIDE.run,
    serving.WIDE.decode: serving.WIDE.run,
    serving.DEEP.overall: serving.DEEP.run,
    serving.DEEP.decode: serving.DEEP.run,
    piping.NAME: piping.run,
    "grid": simulating.run_grid,
    "lorc": simulating.run_lorc,
    "s3-send": transferring.run_send,
    "s3-bring": transferring.run_bring,
    "labs": starting.run_labs,
    curriculum.COLD: curriculum.run,
    curriculum.UNCHANGED: curriculum.run,
    "setup": starting.run_setup,
}
BENCHMARKS = {**QUICK, **LONG}
FULL_PAIRS = {evaluating.NAME: 3}  # where there is no limit, what `make bench` has time for once only
GROWTHS: dict[str, Callable[[Path], Growth]] = {
    "growth-fp8": growing.run_fp8,
    "growth-int8": growing.run_int8,
    "growth-evaluation": growing.run_evaluation,
    "growth-ledger": growing.run_ledger,
    "growth-report": growing.run_report,
}
