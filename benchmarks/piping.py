"""The pipeline on this machine against `labkit run` of one notebook that does the same work."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from benchmarks.measure import SIDES, interleaved, timed
from benchmarks.quantizing import same_tensors
from benchmarks.results import Bar, Result, Run
from labkit.errors import DataError
from labkit.ops.notebooks import FIRST_LAB
from labkit.pipeline.tools import Step
from labkit.workspace import Workspace

NAME = "pipeline"
SCHEMES = ("fp8-dynamic", "int8-smoothquant-gptq")
ROWS = 100  # to calibrate on, and of each task to score
DEADLINE_SECONDS = 900.0

PARAMETERS = "\n".join([*(f'{name} = ""' for name in ("profile", "workspace", "model", "data")), "limit = 0"])
WORK = """import json, os, pathlib
import labkit
from labkit import Request, pipeline

name, schemes = os.environ["LABKIT_LAB"], os.environ["BENCHMARK_SCHEMES"].split()
lab = labkit.open_lab(name, profile=profile, workspace=workspace, model=model, data=data, limit=limit)
made = {variant: pipeline.quantize(lab, variant)["work_seconds"] for variant in schemes}
folders = {"bf16": lab.base} | {variant: lab.checkpoint(variant) for variant in made}
scored = lab.evaluate([Request(v, folder, task) for v, folder in folders.items() for task in lab.profile.tasks])
baseline = {e.request.task.name: e for e in scored if e.request.variant == "bf16"}
others = [e for e in scored if e.request.variant != "bf16"]
for e in others:
    lab.compare(baseline[e.request.task.name], e)
work = sum(made.values()) + sum(e.wall_seconds for e in scored)
starting = sum(e.engine_start_seconds for e in scored)
scores = {f"{e.request.variant} on {e.request.task.name}": e.value for e in others}
found = {"work_seconds": work, "engine_start_seconds": starting, "scores": scores}
pathlib.Path(os.environ["BENCHMARK_ANSWER"]).write_text(json.dumps(found))"""


def run(scratch: Path, pairs: int | None) -> Result:
    """Measures the pair; raises DataError unless both sides made the same checkpoints and gave the same scores."""
    course, found = scratch / "course", scratch / "found"
    found.mkdir()
    _write_notebook(course)

    def ours(number: int) -> Run:
        command = [sys.executable, str(SIDES / "labkit_pipeline.py"), str(scratch / f"ours-{number}")]
        command += [str(found / "ours.json"), str(ROWS), *SCHEMES]
        return timed(command, scratch / "ours.log", deadline_seconds=DEADLINE_SECONDS, cwd=scratch)

    def theirs(number: int) -> Run:
        command = [sys.executable, "-m", "labkit.ops.cli", "run", "--workspace", str(scratch / f"theirs-{number}")]
        command += ["-p", "limit", str(ROWS)]
        env = {"BENCHMARK_ANSWER": str(found / "theirs.json"), "BENCHMARK_SCHEMES": " ".join(SCHEMES)}
        return timed(command, scratch / "theirs.log", deadline_seconds=DEADLINE_SECONDS, env=env, cwd=course)

    our_runs, their_runs = interleaved(ours, theirs, pairs or 1)
    mine, other = (json.loads((found / f"{side}.json").read_text(encoding="utf-8")) for side in ("ours", "theirs"))
    _require_equal(mine["scores"], other["scores"], Path(mine["store"]), scratch / f"theirs-{len(their_runs) - 1}")
    return Result(
        name=NAME,
        what=f"Quantize, evaluate and compare {len(SCHEMES)} schemes as a pipeline on this machine",
        against="`labkit run` of one notebook that does the same work",
        bars=(Bar("wall_seconds"), Bar("peak_bytes")),
        ours=tuple(our_runs),
        theirs=tuple(their_runs),
        checked=f"the same tensors and the same scores on both sides. {explained(mine, other, their_runs[-1])}",
    )


def explained(ours: Mapping[str, Any], theirs: Mapping[str, Any], their_run: Run) -> str:
    """Where the time of the last pair went, in words: the engine starts of both sides, and what is left.

    ours: {"wall_seconds", "steps": a list of `labkit.pipeline.Step` as dicts}. theirs: {"work_seconds",
    "engine_start_seconds"}. The parts of each side add up to its wall time.
    """
    steps = [Step(**step) for step in ours["steps"]]
    work, starting, other = (
        sum(getattr(step, part) for step in steps) for part in ("work_seconds", "engine_start_seconds", "other_seconds")
    )
    starts = sum(step.step == "evaluate" for step in steps)
    kfp = ours["wall_seconds"] - sum(step.seconds for step in steps)
    rest = their_run.wall_seconds - theirs["work_seconds"] - theirs["engine_start_seconds"]
    return (
        f"The pipeline's {ours['wall_seconds']:.0f} s: {work:.0f} s of quantizing and scoring, {starting:.0f} s of "
        f"{starts} engine starts, {other:.0f} s of interpreters, libraries, checks and the store in {len(steps)} "
        f"steps, {kfp:.0f} s of kfp. "
        f"The notebook's {their_run.wall_seconds:.0f} s: {theirs['work_seconds']:.0f} s of the same work, "
        f"{theirs['engine_start_seconds']:.0f} s of one engine's start and its change of models, {rest:.0f} s of the "
        f"rest"
    )


def _write_notebook(course: Path) -> None:
    """A course of one lab, which the command line takes for a course by the name of its first."""
    first = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    notebook = new_notebook(cells=[first, new_code_cell(WORK), new_code_cell("lab.end()")])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["labkit"] = {"needs": [], "makes": [], "schemes": []}
    (course / "notebooks").mkdir(parents=True)
    nbformat.write(notebook, course / "notebooks" / f"{FIRST_LAB}.ipynb")


def _require_equal(ours: Mapping[str, float], theirs: Mapping[str, float], our_store: Path, their_room: Path) -> None:
    for scheme in SCHEMES:
        (sent,) = (our_store / "checkpoints").glob(f"*--{scheme}")
        same_tensors(Path(), sent, Workspace(their_room).checkpoint(scheme))
    if ours != theirs:
        raise DataError(
            f"the two sides scored {dict(ours)} and {dict(theirs)}",
            why="two ways that did different work can't be compared in time",
            fix="look for a setting that one side has and the other has not",
        )
