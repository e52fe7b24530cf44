"""The pipeline of `definition.py`: compiled, read back, run on this machine, or submitted to a cluster.

kfp has an interpreter of its own, in `.venv-kfp`: its pins don't go together with the labs'.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from labkit import process
from labkit.errors import ProcessFailed, UsageError
from labkit.profiles import EMBEDDED
from labkit.store import Workspace
from labkit.transfer import parse, refuse_plain_http

READY = ".ready-*"  # what make leaves in a finished environment
DEFINITION = Path(__file__).with_name("definition.py")
KFP_VARIABLE = "LABKIT_KFP_PYTHON"
QUICK_SECONDS, RUN_SECONDS = 300.0, 12 * 3600.0
HERE = {"image": "python:3.11", "gpus": 0, "parallel": 1}  # one step at a time: they share this machine's memory
ERROR = re.compile(r"^\s*labkit \w+: .*(?:\n\s*(?:Why it matters:|Now:).*)*$", re.MULTILINE)
ENDED = re.compile(r"Task '(?!for-loop)([\w-]+)' finished with status ([A-Z]+)\n")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Cluster:
    """image: what every step runs in. gpus, memory: what quantizing and evaluating each ask for ("64Gi"; "" for none).

    secret: the Kubernetes secret with the S3 keys, such as a workbench's data connection; "" for none.
    """

    image: str
    gpus: int = 1
    memory: str = ""
    secret: str = ""


@dataclass(frozen=True)
class Task:
    """A task of a compiled pipeline, and what it asks a cluster for.

    after: the tasks that it waits for. once: whether it runs once, or for each variant.
    """

    name: str
    after: tuple[str, ...]
    once: bool
    image: str
    gpus: int
    memory: str
    secret: str


@dataclass(frozen=True)
class Step:
    """One step that ran. seconds: of its whole process; of them, the quantizing or scoring, and the start of vLLM."""

    step: str
    model: str
    variant: str
    seconds: float
    work_seconds: float = 0.0
    engine_start_seconds: float = 0.0

    @property
    def other_seconds(self) -> float:
        """What is left: the interpreter, the libraries, checks, uploads to the store and downloads from it."""
        return self.seconds - self.work_seconds - self.engine_start_seconds


@dataclass(frozen=True)
class LocalRun:
    """A pipeline that ran here to its end, green or red. steps: those that passed; failed: the others' names.

    said: labkit's errors in the failed steps. comparison: what `steps.write_comparison` wrote, if it came so far.
    """

    store: str
    log: Path
    wall_seconds: float
    steps: tuple[Step, ...]
    failed: tuple[str, ...]
    said: str
    comparison: tuple[Mapping[str, Any], ...]


def kfp_python() -> Path:
    """The interpreter that has kfp; raises UsageError if it is not there."""
    named, own = os.environ.get(KFP_VARIABLE), Path(__file__).parents[2] / ".venv-kfp"
    found = Path(named) if named else own / "bin" / "python"
    if not found.is_file() or not (named or list(own.glob(READY))):
        why = "kfp's pins don't go together with the labs', so it has an environment of its own"
        fix = f"make it: make kfp (or name an interpreter that has kfp: {KFP_VARIABLE})"
        raise UsageError(f"{found} is not there, or not finished", why, fix)
    return found


def _kfp(words: Sequence[str], log: Path, seconds: float = QUICK_SECONDS, **more: Any) -> process.Finished:
    """Runs the definition with kfp's interpreter; its exit code is the caller's to judge."""
    log.unlink(missing_ok=True)
    command = [str(kfp_python()), "-I", "-u", str(DEFINITION), *words]
    return process.run(command, log, deadline_seconds=seconds, **more)


def _broken(what: str, log: Path) -> ProcessFailed:
    why = f"the end of its log:\n{process.log_tail(log)}"
    return ProcessFailed(f"kfp could not {what} the pipeline", why, fix=f"the whole log: {log}")


# --- a compiled pipeline ----------------------------------------------------------------------------------------------


def compile_to(path: Path, cluster: Cluster, log: Path) -> list[Task]:
    """Writes the pipeline's YAML; returns its tasks. Raises ProcessFailed with kfp's own words if it won't compile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if _kfp(["compile", str(path), json.dumps(asdict(cluster))], log).returncode:
        raise _broken("compile", log)
    return read_back(path)


def read_back(path: Path) -> list[Task]:
    """The tasks of a compiled pipeline, each after those that it waits for."""
    import yaml

    spec, *more = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    platform = more[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if more else {}
    outer = spec["root"]["dag"]["tasks"]
    loops = {name: spec["components"][f"comp-{name}"]["dag"]["tasks"] for name in outer if name.startswith("for-loop")}
    waits: dict[str, list[str]] = {}
    for name, task in outer.items():
        for inner, one in loops.get(name, {name: task}).items():
            waits[inner] = one.get("dependentTasks") or task.get("dependentTasks", [])
    # whoever waits for a fan-out waits for the last tasks in it
    last = {name: inside.keys() - {other for task in inside for other in waits[task]} for name, inside in loops.items()}
    after = {name: sorted(one for other in found for one in last.get(other, {other})) for name, found in waits.items()}
    tasks = []
    for name in TopologicalSorter(after).static_order():
        container = spec["deploymentSpec"]["executors"][f"exec-{name}"]["container"]
        asked = container.get("resources", {})
        secrets = {each["secretName"] for each in platform.get(f"exec-{name}", {}).get("secretAsEnv", ())}
        gpus = int(asked.get("accelerator", {}).get("resourceCount", 0))
        wants = (container["image"], gpus, asked.get("resourceMemoryRequest", ""), ", ".join(sorted(secrets)))
        tasks.append(Task(name, tuple(after[name]), name in outer, *wants))
    return tasks


# --- runs -------------------------------------------------------------------------------------------------------------


def run_here(
    models: Sequence[str],
    schemes: Sequence[str],
    *,
    profile: str,
    workspace: Workspace,
    store: str = "",
    data: str = "",
    limit: int = 0,
    tell: Callable[[str], None] = print,
) -> LocalRun:
    """Runs the pipeline on this machine with kfp's subprocess runner, one step after another; no cluster, no Docker.

    The steps have a workspace of their own below WORKSPACE/pipeline, and the store is there too if none is named.
    tell: gets a line as each task ends. Raises ProcessFailed if the pipeline could not even begin.
    """
    root = workspace.root / "pipeline"
    records = root / "runs" / datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    log, place = records / "pipeline.log", str(parse(store or str(root / "store")))
    asked = {"models": [*models], "schemes": [*schemes], "profile": profile, "data": data, "limit": limit}
    words = ["run", str(records), json.dumps(asked | {"store": place}), json.dumps(HERE)]
    env = {"LABKIT_PYTHON": sys.executable, "LABKIT_WORKSPACE": str(root / "workspace")}
    ended: list[tuple[str, str]] = []

    def tick() -> None:
        for task, status in ENDED.findall(_text(log))[len(ended) :]:
            ended.append((task, status))
            tell(f"{task}: {'done' if status == 'SUCCESS' else 'FAILED'}")

    try:
        done = _kfp(words, log, RUN_SECONDS, env=env, on_tick=tick)
        tick()  # for what it wrote last
    finally:  # what counts lies in the store; on a cluster the steps' machines are gone by now, with all they held
        shutil.rmtree(root / "workspace" / "checkpoints", ignore_errors=True)
    failed = sorted({task for task, status in ended if status != "SUCCESS"})
    if done.returncode and not failed:
        raise _broken("run", log)
    said = dict.fromkeys(re.sub(r"\n\s*", "\n", each.strip()) for each in ERROR.findall(_text(log)))
    compared = next(records.rglob("report.json"), None)  # beside the artifact that the definition names `report`
    rows = json.loads(compared.read_text(encoding="utf-8")) if compared else ()
    return LocalRun(place, log, done.wall_seconds, _steps(records), tuple(failed), "\n".join(said), tuple(rows))


def _text(log: Path) -> str:
    return ANSI.sub("", log.read_text(encoding="utf-8", errors="replace"))


def _steps(records: Path) -> tuple[Step, ...]:
    """The steps that handed their figures to kfp, in the order in which they ended."""
    known, found = {field.name for field in fields(Step)}, []
    for path in sorted(records.rglob("executor_output.json"), key=lambda path: path.stat().st_mtime):
        for each in json.loads(path.read_text(encoding="utf-8")).get("artifacts", {}).values():
            figures = each["artifacts"][0]["metadata"]
            if "step" in figures:
                found.append(Step(**{name: figures[name] for name in known & figures.keys()}))
    return tuple(found)


def submit(endpoint: str, arguments: Mapping[str, Any], cluster: Cluster, log: Path) -> dict[str, str]:
    """Starts the pipeline on a Kubeflow server; returns the run's id and name.

    The token comes from `KFP_TOKEN`, the certificate of a server that signed its own from `KFP_CA_BUNDLE`. Raises
    UsageError for a store that the cluster's steps can't share, ProcessFailed with the server's answer.
    """
    refuse_plain_http(endpoint, "--endpoint", "KFP_CA_BUNDLE")
    named = [*arguments["models"], arguments["data"]]
    here = [name for name in named if name not in ("", EMBEDDED) and Path(name).exists()]
    if parse(str(arguments["store"])).kind != "s3":
        here.append(str(arguments["store"]))
    if here:
        why = "each step runs on a machine of its own, and a folder of this one is not there"
        fix = "give the store as s3://BUCKET/PREFIX, a model or data as a hub id or an address (labkit publish)"
        raise UsageError(f"a cluster is asked to use {', '.join(here)}", why, fix)
    answer = log.with_suffix(".json")
    words = ["submit", endpoint, json.dumps(arguments), json.dumps(asdict(cluster)), str(answer)]
    if _kfp(words, log).returncode:
        raise _broken("submit", log)
    started: dict[str, str] = json.loads(answer.read_text(encoding="utf-8"))
    return started
