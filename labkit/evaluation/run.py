"""Runs evaluation requests: files ready, child started, answers read, samples kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from labkit import engine as engines
from labkit.evaluation.lanes import Tick, answers, lanes
from labkit.evaluation.request import Evaluation, Request, Sample, save_evaluation, standard_error
from labkit.evaluation.sentences import find_sentence_splitter
from labkit.evaluation.tasks import TaskFiles, task_files
from labkit.profiles import Engine
from labkit.workspace import Workspace

CHILD = Path(__file__).with_name("child.py")
IFEVAL = "ifeval"


def evaluate(
    requests: Sequence[Request],
    *,
    workspace: Workspace,
    engine: Engine,
    offline: bool,
    log: Path,
    data: str = "",
    seed: int = 0,
    deadline_seconds: float = 7200.0,
    isolate: bool | None = None,
    on_tick: Tick | None = None,
) -> list[Evaluation]:
    """Scores each request with lm-eval in a supervised child; results come in the order of the requests.

    Requests for one checkpoint share its engine as far as their settings allow. On a CPU one child runs all of them,
    one model after another, or two do, side by side (lanes.py); on a GPU each model gets a child of its own (`isolate`
    says which to do anyway). data: a local folder in place of hub data sets. deadline_seconds: for each child. Samples
    go to `results/`.

    Raises CheckpointError for a folder that is none, DataError for missing rows, ProcessFailed with the child's own
    exception when lm-eval or the engine fails.
    """
    if not requests:
        return []
    work = workspace.root / "cache" / "evaluation"
    files = {r.task.name: task_files(r.task, work, data=data, rows=r.rows, seed=seed) for r in _widest(requests)}
    jobs = _by_engine([job_request(number, request, engine) for number, request in enumerate(requests)])
    common = {
        "tasks": {name: asdict(found) for name, found in files.items()},
        "engine": asdict(engine),
        "seed": seed,
        "isolate": isolate,
    }
    places = [os.environ.get("NLTK_DATA", ""), str(Path(data) / "nltk") if data else "", str(work / "nltk")]
    places = [place for whole in places for place in whole.split(os.pathsep) if place]
    sentences, env = "", {}
    if IFEVAL in files:
        sentences, env["NLTK_DATA"] = find_sentence_splitter(places, work / "nltk", offline=offline)
    run = partial(
        engines.run_script,
        CHILD.read_text(encoding="utf-8"),
        log=log,
        engine=engine,
        offline=offline,
        deadline_seconds=deadline_seconds,
        env=env,
    )
    results, versions = answers(lanes(jobs, engine, isolate), common, run, on_tick)
    done: dict[int, Evaluation] = {}
    for asked in jobs:
        request, result = requests[asked["number"]], results[asked["number"]]
        settings = settings_of(request, asked, result, files[request.task.name], engine, seed)
        if request.task.name == IFEVAL:
            settings["sentence_splitter"] = sentences
        done[asked["number"]] = finished(request, result, settings, versions, workspace)
    return [done[number] for number in range(len(requests))]


def _widest(requests: Sequence[Request]) -> list[Request]:
    """One request for each task, the one that scores most rows: its rows serve the others, which read fewer of them."""
    widest: dict[str, Request] = {}
    for request in requests:
        other = widest.get(request.task.name)
        if other is None or (other.rows is not None and (request.rows is None or request.rows > other.rows)):
            widest[request.task.name] = request
    return list(widest.values())


def job_request(number: int, request: Request, engine: Engine) -> dict[str, Any]:
    """A request as the child reads it; `engine_key` is what must be equal for two requests to share a loaded model."""
    task = request.task
    trap = request.double_bos and task.kind == "accuracy"  # only there lm-eval's prefix token differs
    return {
        "number": number,
        "engine_key": f"{request.checkpoint}|{request.backend}|{request.adds_bos}|{trap}|{request.kv_cache_dtype}",
        "variant": request.variant,
        "checkpoint": str(request.checkpoint),
        "task": task.name,
        "kind": task.kind,
        "metric": task.metric,
        "filter": task.filter,
        "num_fewshot": request.examples,
        "limit": request.rows,
        "backend": request.backend,
        "kv_cache_dtype": request.kv_cache_dtype,
        "chat_template": request.templated,
        "add_bos": request.adds_bos,
        "double_bos": request.double_bos,
        "max_model_len": engines.model_length(request.checkpoint, engine),
        "dtype": engines.number_type(engine, request.checkpoint),
    }


def _by_engine(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with requests for one engine together, engines in the order of their first request."""
    keys = list(dict.fromkeys(job["engine_key"] for job in jobs))
    return sorted(jobs, key=lambda job: keys.index(job["engine_key"]))


def settings_of(
    request: Request, job: dict[str, Any], result: dict[str, Any], files: TaskFiles, engine: Engine, seed: int
) -> dict[str, Any]:
    """Everything that moves the score, the same for a baseline and a candidate that may be compared."""
    return {
        "task": request.task.name,
        "filter": request.task.filter,
        "backend": request.backend,
        "num_fewshot": request.examples,
        "fewshot_as_multiturn": request.templated,
        "limit": request.rows,
        "seed": seed,
        "add_bos": request.adds_bos,
        "double_bos": request.double_bos,
        "max_model_len": job["max_model_len"],
        "dtype": job["dtype"],
        "enforce_eager": engine.enforce_eager,
        "kv_cache_dtype": request.kv_cache_dtype,
        "data": files.data,
        **result["settings"],
    }


def finished(
    request: Request, result: dict[str, Any], settings: dict[str, Any], versions: dict[str, str], workspace: Workspace
) -> Evaluation:
    """The evaluation of one answer of the child, saved."""
    samples = [Sample(**row) for row in result["samples"]]
    evaluation = Evaluation(
        request=request,
        value=float(result["value"]),
        stderr=standard_error(samples, request.task.kind),
        n=len(samples),
        samples=_samples_path(workspace, request, settings),
        settings=settings,
        metrics=result["metrics"],
        versions=versions,
        wall_seconds=result["wall_seconds"],
        engine_start_seconds=result.get("engine_start_seconds", 0.0),  # a model in memory has no engine
        cache_tokens=result["cache_tokens"],
    )
    save_evaluation(evaluation, samples)
    return evaluation


def _samples_path(workspace: Workspace, request: Request, settings: dict[str, Any]) -> Path:
    """`results/<checkpoint>/<task>-<digest of the settings>.jsonl`: the same evaluation replaces itself, no other."""
    name = request.checkpoint.name
    digest = hashlib.sha256(json.dumps([str(request.checkpoint), settings], sort_keys=True).encode()).hexdigest()[:10]
    return workspace.results / name / f"{request.task.name}-{digest}.jsonl"
