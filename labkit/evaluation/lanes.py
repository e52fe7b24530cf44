"""Which child scores what: all models in one, or shared between two at once where a machine has room for two engines.

Most of a small evaluation is waiting for imports and for engines to start, which is work for one core. So on a CPU of
several cores two children share the models, if memory for both is free. Each model's requests stay together
in one child, in their order, and every engine has the threads that it would have alone: scores are the same.

Beside other labs (`labkit run --jobs 2`) one child does: no core is left waiting, and a second one imports all again.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from labkit import hardware
from labkit.modelfolder import weight_files
from labkit.profiles import Engine

LANES = 2
BESIDE_BYTES = 3 * 2**30  # what a child takes beside weights and cache: libraries and buffers
LOOK_SECONDS = 0.1

Job = dict[str, Any]
Run = Callable[..., dict[str, Any]]
# (requests done, requests in all, what is being done), for progress bars
Tick = Callable[[int, int, str], None]


class _Stopped(Exception):
    """Another lane failed, or the caller was interrupted."""


def lanes(jobs: list[Job], engine: Engine, isolate: bool | None) -> list[list[Job]]:
    """The requests of each child. jobs: those for one engine stand together; isolate: see `evaluate`."""
    models = list(dict.fromkeys(job["engine_key"] for job in jobs))
    beside_labs = (os.environ.get("LABKIT_JOBS") or "1") != "1"
    if isolate or beside_labs or len(models) < LANES or not _has_room(jobs, engine):
        return [jobs]
    return [[job for job in jobs if models.index(job["engine_key"]) % LANES == lane] for lane in range(LANES)]


def _has_room(jobs: list[Job], engine: Engine) -> bool:
    """Whether several engines may run at once: on a CPU with a core for each, and memory for the largest models."""
    machine = hardware.this_machine()
    if machine.gpus or hardware.engine_build() != "cpu" or machine.cores < LANES:
        return False
    folders = {job["checkpoint"] for job in jobs}
    sizes = sorted(sum(path.stat().st_size for path in weight_files(Path(folder))) for folder in folders)
    largest = sizes[-1] * 2  # loading may hold a copy, and the HF backend computes on dequantized weights
    needed = LANES * (largest + engine.kv_cache_gib * 2**30 + BESIDE_BYTES)
    free = min(psutil.virtual_memory().available, machine.memory_bytes)  # the latter knows a container's limit
    return bool(free > needed)


def answers(
    children: list[list[Job]], common: Job, run: Run, on_tick: Tick | None
) -> tuple[dict[int, dict[str, Any]], dict[str, str]]:
    """What each request got, by its number, and the versions of the last child that answered.

    When a child fails the others are stopped, and its error is raised.
    """
    done = [0] * len(children)
    doing = [""] * len(children)
    stop = threading.Event()
    found: dict[int, dict[str, Any]] = {}
    versions: dict[str, str] = {}
    total = sum(map(len, children))
    told: list[tuple[int, str]] = []

    def tell() -> None:
        state = sum(done), " and ".join(filter(None, doing))
        if on_tick and state[1] and told[-1:] != [state]:
            told.append(state)
            on_tick(state[0], total, state[1])

    with tempfile.TemporaryDirectory(prefix="labkit-evaluation-") as scratch, ThreadPoolExecutor(len(children)) as pool:

        def lane(number: int) -> None:
            """Child after child: one answers as many requests as it may (on a GPU those of one model)."""
            jobs, progress = children[number], Path(scratch) / f"progress-{number}.json"
            answered = 0

            def tick() -> None:
                if stop.is_set():
                    raise _Stopped
                try:
                    now, doing[number] = json.loads(progress.read_text())
                    done[number] = answered + now
                except (OSError, ValueError):
                    return  # not there yet, or just being written

            while answered < len(jobs):
                folder = Path(scratch) / str(number)
                folder.mkdir(exist_ok=True)
                job = {"requests": jobs[answered:], "scratch": str(folder), "progress": str(progress), **common}
                answer = run(job, on_tick=tick)
                found.update(zip((each["number"] for each in jobs[answered:]), answer["results"], strict=False))
                versions.update(answer["versions"])
                answered += len(answer["results"])
            done[number], doing[number] = len(jobs), ""

        running = [pool.submit(lane, number) for number in range(len(children))]
        try:
            while not all(each.done() for each in running) and not _failed(running):
                tell()
                time.sleep(LOOK_SECONDS)
        finally:
            stop.set()
    if failure := _failed(running):
        raise failure
    if on_tick:
        on_tick(total, total, "done")
    return found, versions


def _failed(running: list[Future[None]]) -> BaseException | None:
    """The error of the first lane that has failed by itself."""
    errors = [each.exception() for each in running if each.done()]
    return next((error for error in errors if error and not isinstance(error, _Stopped)), None)
