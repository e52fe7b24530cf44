"""A quantize by several processes of this machine, one on each GPU: each reads its share of the calibration rows.

llm-compressor adds up what they saw, divides GPTQ's layers among them, and every process ends with all of the result;
the first one saves it. It is usually started by torchrun; here it is not, because torchrun's store listens on every
address of the machine, and a file does as well on one node.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from labkit import hardware, processes
from labkit.errors import ProcessFailed, UsageError
from labkit.lab import Lab
from labkit.pipeline.recipes import Recipe
from labkit.workspace import Workspace

DEADLINE_SECONDS = 12 * 3600.0
LOOK_SECONDS, LINGER_SECONDS = 0.2, 2.0
# one machine: what the processes say to each other stays on it
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def with_processes(lab: Lab, count: int, rows: int) -> Lab:
    """The same lab, quantizing by `count` processes on `rows` calibration rows, in an empty workspace of its own."""
    return replace(
        lab,
        workspace=Workspace(lab.scratch(f"{count}-processes")),
        profile=replace(lab.profile.with_limit(rows), data_parallel=count),
        parameters=replace(lab.parameters, limit=min(rows, lab.parameters.limit or rows)),
    )


def quantize_together(lab: Lab, variant: str, recipe: Recipe) -> dict[str, float]:
    """Makes a variant with `lab.profile.data_parallel` processes; returns what `steps.make` does.

    Raises UsageError for fewer rows than processes, ProcessFailed with its log's end if a process failed.
    """
    count = lab.profile.data_parallel
    if recipe.rows_of(lab.profile) < count:
        raise UsageError(
            f"LABKIT_DATA_PARALLEL is {count}, and there are {recipe.rows_of(lab.profile)} calibration rows to share",
            fix="take fewer processes, or more rows",
        )
    gpus = len(hardware.this_machine().gpus)
    if lab.device == "cuda" and count > gpus:
        raise UsageError(
            f"LABKIT_DATA_PARALLEL is {count}, and this machine has {gpus} GPUs", fix="take one for each GPU"
        )
    logs = lab.log(variant).parent
    with tempfile.TemporaryDirectory(prefix="labkit-ranks-") as scratch:
        answer = Path(scratch) / "answer.json"
        parameters = {k: v for k, v in asdict(lab.parameters).items() if v} | {"workspace": str(lab.workspace.root)}
        job = {"variant": variant, "parameters": parameters, "meet": f"{scratch}/meet", "answer": str(answer)}
        with ExitStack() as stack:
            ranks = []
            for rank in range(count):
                command = [sys.executable, "-m", "labkit.pipeline.rank", json.dumps(job | {"rank": rank, "of": count})]
                threads = str(max(1, (os.cpu_count() or 1) // count))
                env = {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": threads}
                child = stack.enter_context(
                    processes.start(command, logs / f"{variant}.process-{rank}.log", env | LOOPBACK)
                )
                ranks.append(child)
            _wait(ranks)
        figures: dict[str, float] = json.loads(answer.read_text())
    print(f"{count} processes quantized {variant} in {figures['work_seconds']:.1f} s (library messages: {logs})")
    return figures


def _wait(ranks: list[processes.Child]) -> None:
    """Returns when all have ended well. One that died keeps the others waiting for ever, so it ends them all."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        codes = [child.poll() for child in ranks]
        if any(codes):
            time.sleep(LINGER_SECONDS)  # the others die of its death: all of them are shown
            bad = [child for child in ranks if child.poll()]
            why = "\n".join(f"the end of {child.log}:\n{processes.log_tail(child.log)}" for child in bad)
            raise ProcessFailed(
                f"{len(bad)} of {len(ranks)} processes failed", why, "look at the log of the first to fail"
            )
        if all(code == 0 for code in codes):
            return
        if time.monotonic() > deadline:
            raise ProcessFailed(f"{len(ranks)} processes did not end in time", fix=f"look at {ranks[0].log}")
        time.sleep(LOOK_SECONDS)
