"""The pipeline, compiled, run on this machine, or handed to a cluster.

kfp has an interpreter of its own, in `.venv-kfp`: its pins don't go together with the labs'.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labkit import processes
from labkit.errors import ProcessFailed, UsageError
from labkit.pipeline.compiled import Node, graph
from labkit.profiles import EMBEDDED
from labkit.transfer import parse
from labkit.transfer.address import refuse_plain_http
from labkit.workspace import Workspace

READY = ".ready-*"  # what make leaves in a finished environment
DEFINITION = Path(__file__).with_name("definition.py")
KFP_VARIABLE = "LABKIT_KFP_PYTHON"
QUICK_SECONDS, RUN_SECONDS = 300.0, 12 * 3600.0
HERE = {"image": "python:3.11", "gpus": 0, "parallel": 1}  # one step at a time: they share this machine's memory
SAID = re.compile(r"^\s*(labkit \w+: .*)$", re.MULTILINE)
ENDED = re.compile(r"Task '([\w-]+)' finished with status ([A-Z]+)")
ANSI = re.compile(r"\x1b\[[0-9;]*m")
COMPARISON = "report.json"  # beside the comparison's artifact, which the definition names `report`


@dataclass(frozen=True)
class Cluster:
    """What a cluster must know. image: with labkit in it, what every step runs in.

    gpus, memory: that quantizing and evaluating ask for, each (`memory` as Kubernetes writes it, "" for no request).
    secret: the Kubernetes secret that holds the S3 keys; "" for none. parallel: variants at once, None for no bound.
    """

    image: str
    gpus: int = 1
    memory: str = ""
    secret: str = ""
    parallel: int | None = None


@dataclass(frozen=True)
class Step:
    """One step that ran. seconds: of its process, from its start.

    work_seconds, engine_start_seconds: of them, quantizing or scoring as a lab measures it, and vLLM's start.
    """

    step: str
    model: str
    variant: str
    seconds: float
    work_seconds: float = 0.0
    engine_start_seconds: float = 0.0

    @property
    def other_seconds(self) -> float:
        """What is left: the interpreter, the libraries, checks, and what goes to the store and comes from it."""
        return self.seconds - self.work_seconds - self.engine_start_seconds


@dataclass(frozen=True)
class LocalRun:
    """A pipeline that ran here to its end, green or red.

    steps: those that passed. failed: the names of the others, and said: what labkit said of their failures.
    comparison: rows as `Compared.facts` gives them, if it came so far.
    """

    store: str
    log: Path
    wall_seconds: float
    steps: tuple[Step, ...]
    failed: tuple[str, ...]
    said: str
    comparison: tuple[Mapping[str, Any], ...]


def kfp_python() -> Path:
    """The interpreter that has kfp: `LABKIT_KFP_PYTHON`, else that of `.venv-kfp` beside the notebooks.

    Raises UsageError if it is not there.
    """
    named, own = os.environ.get(KFP_VARIABLE), Path(__file__).parents[2] / ".venv-kfp"
    found = Path(named) if named else own / "bin" / "python"
    if not found.is_file() or not (named or list(own.glob(READY))):
        raise UsageError(
            f"{found} is not there, or not finished",
            why="kfp's pins don't go together with the labs', so it has an environment of its own",
            fix=f"make it: make kfp (or name an interpreter that has kfp: {KFP_VARIABLE})",
        )
    return found


def compile_to(path: Path, cluster: Cluster, log: Path) -> list[Node]:
    """Writes the pipeline's YAML; returns its tasks. Raises ProcessFailed with kfp's own words if it won't compile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if _kfp(["compile", str(path), json.dumps(asdict(cluster))], log, QUICK_SECONDS).returncode:
        raise _broken("compile", log)
    return graph(path)


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
    Raises ProcessFailed if it could not even begin.
    """
    root = workspace.root / "pipeline"
    records = root / "runs" / datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    place = parse(store or str(root / "store"))
    asked: dict[str, Any] = {"models": list(models), "schemes": list(schemes), "store": str(place)}
    asked |= {"profile": profile, "data": data, "limit": limit}
    log = records / "pipeline.log"
    env = {"LABKIT_PYTHON": sys.executable, "LABKIT_WORKSPACE": str(root / "workspace")}
    words = ["run", str(records), json.dumps(asked), json.dumps(HERE)]
    try:
        done = _kfp(words, log, RUN_SECONDS, env, _ticker(log, tell))
    finally:  # what counts lies in the store; on a cluster the steps' machines are gone by now, with all they held
        shutil.rmtree(root / "workspace" / "checkpoints", ignore_errors=True)
    text = log.read_text(encoding="utf-8", errors="replace")
    failed = tuple(sorted({task for task, status in _ended(text) if status != "SUCCESS"}))
    if done.returncode and not failed:
        raise _broken("run", log)
    compared = next(records.rglob(COMPARISON), None)
    return LocalRun(
        store=str(place),
        log=log,
        wall_seconds=done.wall_seconds,
        steps=_steps(records),
        failed=failed,
        said=_said(text),
        comparison=tuple(json.loads(compared.read_text(encoding="utf-8"))) if compared else (),
    )


def submit(endpoint: str, arguments: Mapping[str, Any], cluster: Cluster, log: Path) -> dict[str, str]:
    """Starts the pipeline on a Kubeflow server; returns the run's id and name.

    The token comes from `KFP_TOKEN`, the certificate of a server that signed its own from `KFP_CA_BUNDLE`. Raises
    UsageError for a store that the cluster's steps can't share, ProcessFailed with the server's answer.
    """
    refuse_plain_http(endpoint, "--endpoint", "KFP_CA_BUNDLE")
    here = [
        name for name in (*arguments["models"], arguments["data"]) if name not in ("", EMBEDDED) and Path(name).exists()
    ]
    if parse(str(arguments["store"])).kind != "s3":
        here.append(str(arguments["store"]))
    if here:
        raise UsageError(
            f"a cluster is asked to use {', '.join(here)}",
            why="each step runs on a machine of its own, and a folder of this one is not there",
            fix="give the store as s3://BUCKET/PREFIX, a model or data as a hub id or an address (labkit publish)",
        )
    answer = log.with_suffix(".json")
    words = ["submit", endpoint, json.dumps(arguments), json.dumps(asdict(cluster)), str(answer)]
    if _kfp(words, log, QUICK_SECONDS).returncode:
        raise _broken("submit", log)
    started: dict[str, str] = json.loads(answer.read_text(encoding="utf-8"))
    return started


def _kfp(
    words: Sequence[str],
    log: Path,
    seconds: float,
    env: Mapping[str, str] | None = None,
    on_tick: Callable[[], None] | None = None,
) -> processes.Finished:
    """Runs the definition with kfp's interpreter; its exit code is the caller's to judge."""
    command = [str(kfp_python()), "-I", "-u", str(DEFINITION), *words]
    log.unlink(missing_ok=True)
    done = processes.run(command, log, deadline_seconds=seconds, env=env, on_tick=on_tick)
    if on_tick:
        on_tick()  # what it wrote last
    return done


def _broken(what: str, log: Path) -> ProcessFailed:
    why = f"the end of its log:\n{processes.log_tail(log)}"
    return ProcessFailed(f"kfp could not {what} the pipeline", why, fix=f"the whole log: {log}")


def _ended(text: str) -> list[tuple[str, str]]:
    """The tasks that ended, by kfp's log, and how; a fan-out as a whole is none."""
    return [(task, status) for task, status in ENDED.findall(ANSI.sub("", text)) if not task.startswith("for-loop")]


def _said(text: str) -> str:
    """What labkit's steps said of their failures: each error with the lines that belong to it."""
    found = []
    for match in SAID.finditer(text):
        rest = [line.strip() for line in text[match.end() :].lstrip("\n").split("\n")[:3]]
        more = [line for line in rest if line.startswith(("Why it matters:", "Now:"))]
        found.append("\n".join([match.group(1), *more]))
    return "\n".join(dict.fromkeys(found))


def _ticker(log: Path, tell: Callable[[str], None]) -> Callable[[], None]:
    """Tells of each task as it ends; reads on where it was, for a log grows long."""
    read, rest = 0, ""

    def tick() -> None:
        nonlocal read, rest
        if not log.exists():
            return
        with open(log, "rb") as file:
            file.seek(read)
            new = file.read()
        read += len(new)
        *lines, rest = (rest + new.decode(errors="replace")).split("\n")
        for task, status in _ended("\n".join(lines)):
            tell(f"{task}: {'done' if status == 'SUCCESS' else 'FAILED'}")

    return tick


def _records(records: Path) -> Iterator[Mapping[str, Any]]:
    """What the tasks of a run handed to kfp, in the order in which they ended."""
    for path in sorted(records.rglob("executor_output.json"), key=lambda path: path.stat().st_mtime):
        for found in json.loads(path.read_text()).get("artifacts", {}).values():
            yield from (artifact["metadata"] for artifact in found["artifacts"])


def _steps(records: Path) -> tuple[Step, ...]:
    named = [record for record in _records(records) if "step" in record]
    return tuple(Step(**{field.name: r[field.name] for field in fields(Step) if field.name in r}) for r in named)
