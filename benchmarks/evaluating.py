"""Four variants of the embedded model on 500 problems: one process of labkit against four `lm_eval` command lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.measure import SIDES, interleaved, timed
from benchmarks.results import Bar, Result, Run
from labkit.engine import engine_env, model_length
from labkit.errors import DataError
from labkit.evaluation import load_samples
from labkit.profiles import TINY

NAME = "evaluate"
VARIANTS = ("bf16", "fp8-dynamic", "int8-rtn", "int8-smoothquant-gptq")
DEADLINE_SECONDS = 600.0
BARS = (Bar("wall_seconds", 0.15), Bar("peak_bytes"))

# One row as both sides judged it: row number, digest of the prompt, answer as the filter extracted it, score.
Judged = tuple[int, str, str, float]


def run(scratch: Path, pairs: int | None) -> Result:
    """Measures the pair, and raises DataError unless both sides gave every row the same answer and score."""
    workspace, folder, log = scratch / "workspace", scratch / "task", scratch / "log"
    folder.mkdir()
    make = [sys.executable, str(SIDES / "make_variants.py"), str(workspace), str(folder)]
    timed(make, scratch / "make.log", deadline_seconds=DEADLINE_SECONDS, cwd=scratch)
    task_file = folder / f"{TINY.main_task.name}-{TINY.main_task.num_fewshot}.yaml"
    samples = 0

    def ours(_: int) -> Run:
        answer = str(scratch / "ours.json")
        command = [sys.executable, str(SIDES / "labkit_evaluation.py"), str(workspace), answer, *VARIANTS]
        return timed(command, log / "ours.log", deadline_seconds=DEADLINE_SECONDS, cwd=scratch)

    def theirs(number: int) -> Run:
        nonlocal samples
        output = scratch / f"theirs-{number}"
        runs = [_lm_eval(workspace, variant, task_file, output / variant, log) for variant in VARIANTS]
        samples += _assert_equal(scratch / "ours.json", output)
        return Run(sum(one.wall_seconds for one in runs), max(one.peak_bytes for one in runs))

    our_runs, their_runs = interleaved(ours, theirs, pairs or 1)
    return Result(
        name=NAME,
        what=f"Evaluate {len(VARIANTS)} variants on {TINY.main_task.limit} problems",
        against=f"{len(VARIANTS)} runs of `lm_eval run --model vllm` with the same task file and settings",
        bars=BARS,
        ours=tuple(our_runs),
        theirs=tuple(their_runs),
        checked=f"the same answer and score for each of {samples:,} samples, and equal figures for every variant",
    )


def _lm_eval(workspace: Path, variant: str, task_file: Path, output: Path, log: Path) -> Run:
    """One command line of lm-eval, with every setting that labkit gives it (see labkit/evaluation/child.py)."""
    engine = TINY.engine
    model = {
        "pretrained": workspace / "checkpoints" / variant,
        "dtype": engine.dtype,
        "max_model_len": model_length(workspace / "checkpoints" / variant, engine),
        "enforce_eager": engine.enforce_eager,
        "seed": TINY.seed,
        "add_bos_token": False,  # the chat template writes it
    }
    command = [sys.executable, str(SIDES / "lm_eval_cli.py"), "run", "--model", "vllm"]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in model.items())]
    command += ["--tasks", str(task_file), "--batch_size", "auto", "--limit", str(TINY.main_task.limit)]
    command += ["--apply_chat_template", "--fewshot_as_multiturn", "--seed", str(TINY.seed)]
    command += ["--output_path", str(output), "--log_samples"]
    return timed(
        command,
        log / f"theirs-{variant}.log",
        deadline_seconds=DEADLINE_SECONDS,
        env=_environment(),
        cwd=output.parent.parent,
    )


def _environment() -> dict[str, str]:
    """The environment that labkit starts an engine with, but for the engine's place.

    An engine inside the caller's process is part of what labkit does; a command line gets vLLM's default.
    """
    environment = engine_env(TINY.engine, offline=True)
    del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]
    return environment


def _assert_equal(ours: Path, theirs: Path) -> int:
    """How many samples were compared; DataError names the first difference."""
    compared = 0
    for variant, found in json.loads(ours.read_text(encoding="utf-8")).items():
        mine = [(s.doc_id, s.prompt_sha256, s.prediction, s.score) for s in load_samples(Path(found["samples"]))]
        other = _their_samples(theirs / variant)
        different = [a for a, b in zip(mine, other, strict=True) if a != b]
        if different or found["value"] != _their_value(theirs / variant):
            raise DataError(
                f"{variant}: the two sides differ in {len(different)} of {len(mine)} samples, first {different[:1]}",
                why="two evaluations that disagree can't be compared in speed",
                fix="look for a setting that one side has and the other has not",
            )
        compared += len(mine)
    return compared


def _their_samples(folder: Path) -> list[Judged]:
    (file,) = folder.rglob("samples_*.jsonl")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]
    task = TINY.main_task
    return [
        (row["doc_id"], row["prompt_hash"], str(row["filtered_resps"][0]), float(row[task.metric]))
        for row in rows
        if row["filter"] == task.filter
    ]


def _their_value(folder: Path) -> float:
    (file,) = folder.rglob("results_*.json")
    task = TINY.main_task
    return float(json.loads(file.read_text(encoding="utf-8"))["results"][task.name][f"{task.metric},{task.filter}"])
