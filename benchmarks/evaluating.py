"""Four variants of the embedded model on 500 problems: one process of labkit against four `lm_eval` command lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.measure import Bar, Growth, Point, Result, Run, interleaved, ours, script
from labkit.engine import engine_env, model_length, number_type
from labkit.errors import DataError
from labkit.evaluate import load_samples
from labkit.profiles import TINY
from labkit.store import Context, Workspace

VARIANTS = ("bf16", "fp8-dynamic", "int8-rtn", "int8-smoothquant-gptq")
BARS = (Bar("wall_seconds", 0.15), Bar("peak_bytes"))
SAMPLES = (100, 1000, 10_000)


def run(scratch: Path, pairs: int | None) -> list[Result]:
    """Measures the pair, and raises DataError unless both sides gave every row the same answer and score."""
    workspace, task_file = Workspace(scratch / "workspace"), scratch / f"{TINY.main_task.name}.yaml"
    _, task = ours("make_variants", scratch, workspace.root)
    task_file.write_text(json.dumps(task))  # JSON is YAML
    found: dict[str, Any] = {}
    compared = 0

    def our_side() -> Run:
        done, answer = ours("evaluation", scratch, workspace.root, *VARIANTS)
        found.update(answer)
        return done

    def their_side() -> Run:
        nonlocal compared
        runs = []
        for variant in VARIANTS:
            output = scratch / f"theirs-{compared}-{variant}"
            runs.append(_lm_eval(scratch, workspace, variant, task_file, output))
            compared += _assert_equal(variant, found[variant], output)
        return Run(sum(one.wall_seconds for one in runs), max(one.peak_bytes or 0 for one in runs))

    our_runs, their_runs = interleaved(our_side, their_side, pairs or 1)
    what = f"Evaluate {len(VARIANTS)} variants on {TINY.main_task.limit} problems"
    against = f"{len(VARIANTS)} runs of `lm_eval run --model vllm` with the same task file and settings"
    checked = f"the same answer and score for each of {compared:,} samples, and equal figures for every variant"
    return [Result("evaluate", what, against, BARS, our_runs, their_runs, checked)]


def _lm_eval(scratch: Path, workspace: Workspace, variant: str, task_file: Path, output: Path) -> Run:
    """One command line of lm-eval, with every setting that labkit gives it, and vLLM's default of an own process."""
    checkpoint, engine = workspace.checkpoint(variant), TINY.engine
    model = {
        "pretrained": checkpoint,
        "dtype": number_type(engine, checkpoint),
        "max_model_len": model_length(checkpoint, engine),
        "enforce_eager": engine.enforce_eager,
        "seed": TINY.seed,
        "add_bos_token": False,  # the chat template writes it
    }
    words: list[Any] = ["run", "--model", "vllm"]
    words += ["--model_args", ",".join(f"{name}={value}" for name, value in model.items())]
    words += ["--tasks", task_file, "--batch_size", "auto", "--limit", TINY.main_task.limit, "--seed", TINY.seed]
    words += ["--apply_chat_template", "--fewshot_as_multiturn", "--output_path", output, "--log_samples"]
    environment = engine_env(Context(workspace)) | {"HF_DATASETS_CACHE": str(scratch / "datasets")}
    del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]
    return script("lm_eval_cli.py", scratch, *words, env=environment)


def _assert_equal(variant: str, found: dict[str, Any], theirs: Path) -> int:
    """How many samples were compared; DataError names the first difference."""
    task = TINY.main_task
    (results_file,), (samples_file,) = theirs.rglob("results_*.json"), theirs.rglob("samples_*.jsonl")
    value = json.loads(results_file.read_text(encoding="utf-8"))["results"][task.name][f"{task.metric},{task.filter}"]
    rows = [json.loads(line) for line in samples_file.read_text(encoding="utf-8").split("\n")[:-1]]
    other = [
        (row["doc_id"], row["prompt_hash"], str(row["filtered_resps"][0]), float(row[task.metric]))
        for row in rows
        if row["filter"] == task.filter
    ]
    mine = [(s.doc_id, s.prompt_sha256, s.prediction, s.score) for s in load_samples(Path(found["samples"]))]
    different = [a for a, b in zip(mine, other, strict=True) if a != b]
    if different or found["value"] != value:
        raise DataError(
            f"{variant}: the two sides differ in {len(different)} of {len(mine)} samples, first {different[:1]}",
            why="two evaluations that disagree can't be compared in speed",
            fix="look for a setting that one side has and the other has not",
        )
    return len(mine)


def grow(scratch: Path) -> Growth:
    """The embedded model on more and more problems; the engine is started for each, and its start is not counted."""
    points = [Point(**ours("samples", scratch, scratch / "workspace", samples)[1]) for samples in SAMPLES]
    return Growth("growth-evaluation", "Evaluate a variant", "samples", tuple(points))
