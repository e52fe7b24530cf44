"""labkit's sides of the benchmarks, and what makes their models. Arguments: COMMAND ANSWER WORD...

COMMAND is a function below and WORDs its arguments; what it returns goes to the file ANSWER as JSON.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import labkit

KEPT: list[Any] = []  # what a notebook's names would hold until its kernel ends
SHARD = "500MB"
SHAPES = {  # of Llama: vocabulary, hidden size, intermediate size, layers, heads, heads of keys and values
    "llama-1.5b": (32_000, 2048, 5632, 30, 16, 8),
    "llama-0.4b": (2560, 1024, 4096, 24, 16, 8),
    "llama-0.1b": (16_384, 768, 2048, 12, 12, 12),
    "llama-44m": (16_384, 512, 1536, 8, 8, 8),
    "llama-11m": (4096, 320, 896, 6, 5, 5),
}
FP8, INT8 = "FP8_DYNAMIC", "W8A8"


def make_model(shape: str, folder: str, rows_file: str, rows: str) -> None:
    """A model of SHAPES, or labkit's own `speed-0.4b` of two wide layers, and the file of its calibration rows.

    Random weights from a fixed seed, in BF16, with the embedded model's tokenizer; what is larger than SHARD is cut
    into several files. The rows are of 256 random tokens, the ones that labkit draws itself.
    """
    from transformers import LlamaConfig

    from labkit.checkpoint import load_tokenizer
    from labkit.data import random_text_set
    from labkit.tiny import materialize_random, materialize_speed_model

    place = Path(folder)
    place.mkdir()
    if shape in SHAPES:
        names = ("vocab_size", "hidden_size", "intermediate_size")
        names += ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        sizes: dict[str, Any] = dict(zip(names, SHAPES[shape], strict=True))
        materialize_random(place, LlamaConfig(max_position_embeddings=2048, **sizes), max_shard_size=SHARD)
    else:
        materialize_speed_model(place)
    Path(rows_file).write_text(json.dumps(random_text_set(load_tokenizer(place), int(rows), 256).input_ids))


# --- quantizing -------------------------------------------------------------------------------------------------------


def fp8(base: str, workspace: str) -> dict[str, float]:
    """FP8 as lab 01 does it."""
    return _quantize(labkit.open_lab("01_fp8_rtn", workspace=workspace, model=base), "fp8-dynamic", _rounding(FP8))


def fp8_shards(base: str, workspace: str) -> dict[str, float]:
    """FP8 a shard at a time, as lab 01's part on large models does it."""
    lab = labkit.open_lab("01_fp8_rtn", workspace=workspace, model=base)

    from llmcompressor import model_free_ptq  # where the lab has it

    with lab.quantizing("fp8-dynamic") as job, job.folder(f"model_free_ptq, {FP8}") as folder:
        model_free_ptq(lab.base, folder, scheme=FP8, ignore=["lm_head", "re:.*embed_tokens$"])
    return _took(lab, job)


def gptq(base: str, workspace: str, rows: str) -> dict[str, float]:
    """INT8 with SmoothQuant and GPTQ as lab 02 does it, calibrated on so many random rows of 256 tokens."""
    lab = labkit.open_lab("02_int8_smoothquant_gptq", workspace=workspace, model=base)
    noise = lab.calibration_rows(int(rows), random=True)
    return _quantize(lab, "int8-smoothquant-gptq", _smoothing_and_gptq(lab), noise)


def _rounding(scheme: str) -> Any:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])


def _smoothing_and_gptq(lab: Any) -> list[Any]:
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    more = {"ignore": ["lm_head"], "dampening_frac": lab.profile.dampening_frac, "actorder": None}
    smoothing = SmoothQuantModifier(smoothing_strength=lab.profile.smoothing_strength)
    return [smoothing, GPTQModifier(targets="Linear", scheme=INT8, **more)]


def _quantize(lab: Any, variant: str, recipe: Any, rows: Any = None) -> dict[str, float]:
    from llmcompressor import oneshot

    calibration = {}
    if rows:
        calibration = {"dataset": rows.dataset(), "max_seq_length": rows.max_length}
        calibration["num_calibration_samples"] = len(rows.input_ids)
    with lab.quantizing(variant) as job:
        model = job.load()
        oneshot(model=model, recipe=recipe, **calibration)
        job.save(model, rows)
    KEPT.append((job, model))
    if job.fallbacks:
        sys.exit(f"GPTQ fell back to round-to-nearest: {', '.join(job.fallbacks)}")
    return _took(lab, job)


def _took(lab: Any, job: Any) -> dict[str, float]:
    """Parameters of the base; without imports, loading and saving included: seconds, and bytes that were added."""
    parameters = sum(path.stat().st_size for path in lab.base.glob("*.safetensors")) // 2
    return {"size": parameters, "seconds": job.wall_seconds, "peak_bytes": job.peak_bytes - job.before_bytes}


# --- evaluation -------------------------------------------------------------------------------------------------------


def make_variants(workspace: str) -> Any:
    """The four variants that are scored, as the labs make them; answers with the task file that both sides score."""
    from labkit.evaluate.tasks import DEFINITIONS, task_files

    lab = labkit.open_lab("02_int8_smoothquant_gptq", workspace=workspace)
    _quantize(lab, "fp8-dynamic", _rounding(FP8))
    _quantize(lab, "int8-rtn", _rounding(INT8))
    _quantize(lab, "int8-smoothquant-gptq", _smoothing_and_gptq(lab), lab.calibration_rows(64))
    task = lab.profile.main_task
    files = task_files(task, lab.context, rows=task.limit)
    more = {"dataset_path": "json", "dataset_kwargs": {"data_files": files.data_files}}
    return {
        "include": str(DEFINITIONS / f"{task.name}.yaml"),
        "task": task.name,
        "num_fewshot": task.num_fewshot,
        **more,
    }


def evaluation(workspace: str, *variants: str) -> dict[str, Any]:
    """All variants in one call; answers {variant: {"value": ..., "samples": path}}."""
    from labkit.evaluate import Request, evaluate
    from labkit.store import Context, Workspace

    context = Context(Workspace(Path(workspace)))
    task = context.profile.main_task
    requests = [Request(variant, context.workspace.checkpoint(variant), task) for variant in variants]
    done = evaluate(requests, context, log=Path(workspace) / "evaluation.log")
    return {e.request.variant: {"value": e.value, "samples": str(e.samples)} for e in done}


def samples(workspace: str, count: str) -> dict[str, float]:
    """One evaluation of the embedded model, from the first sample to the last; the engine's start does not count."""
    from labkit.evaluate import Request, evaluate

    lab = labkit.open_lab("03_evaluation", workspace=workspace)
    task = replace(lab.profile.main_task, limit=int(count))
    (done,) = evaluate([Request("bf16", lab.base, task)], lab.context, log=Path(workspace) / "evaluation.log")
    return {"size": done.n, "seconds": done.wall_seconds}


# --- files ------------------------------------------------------------------------------------------------------------


def ledger(path: str, lines: str) -> dict[str, float]:
    """A ledger of so many lines, read and summed up as the scorecard does it; writing them does not count."""
    from labkit.ledger import Ledger, Measurement

    found = Ledger(Path(path))
    more: dict[str, Any] = {"task": "tiny_problems", "n": 500}
    found.append(
        Measurement("accuracy", "exact_match", 0.9, f"variant-{i % 100}", "tiny", **more) for i in range(int(lines))
    )
    return _timed(int(lines), lambda: found.headlines())


def report(folder: str, count: str) -> dict[str, float]:
    """The report of a run of so many labs, of which one in seven failed with a long log."""
    from labkit.ops.report import Failure, LabResult, RunReport, write_report

    failure = Failure("cell 7", "ValueError: too hot", "a traceback\n" * 40, "a line of a log\n" * 40)
    labs = tuple(
        LabResult(f"{i:03}_lab", "passed" if i % 7 else "failed", seconds=60.0, failure=None if i % 7 else failure)
        for i in range(int(count))
    )
    more: dict[str, Any] = {"run": "run", "started": "2026-01-01T00:00:00Z", "workspace": "workspace", "parameters": {}}
    more |= {"machine": "machine", "level": "avx2", "probe_seconds": 1.0}
    found = RunReport("tiny", 60.0 * len(labs), {}, labs, complete=True, stopped="", **more)
    place = Path(folder)
    place.mkdir()
    write_report(found, place)  # once before: what templates cost at first is not what grows
    return _timed(len(labs), lambda: write_report(found, place))


def _timed(size: int, work: Callable[[], Any]) -> dict[str, float]:
    began = time.perf_counter()
    work()
    return {"size": size, "seconds": time.perf_counter() - began}


# --- serving ----------------------------------------------------------------------------------------------------------


def serving_pair(base: str, workspace: str, pairs: str) -> dict[str, dict[str, list[float]]]:
    """INT8 W8A8 against BF16 in vLLM, by turns: answers {"bf16": {"overall": seconds, "decode": seconds}, "int8": ...}.

    Both servers are up at once and loaded by turns; then engines without a server, by turns as well, for decode alone:
    on two cores of a shared machine the same load took from 3.7 to 8.6 s within four minutes.
    """
    from labkit import measured
    from labkit.serve import Load

    load = Load(concurrency=32, requests=32, input_tokens=128, output_tokens=64)
    lab = labkit.open_lab("04_serving_throughput", workspace=workspace, model=base)
    serving = replace(lab.profile.serving, concurrencies=(load.concurrency,), compiled=True)
    lab = replace(lab, context=replace(lab.context, profile=replace(lab.profile, serving=serving)))
    _quantize(lab, "int8-rtn", _rounding(INT8))
    folders = {"bf16": lab.base, "int8": lab.checkpoint("int8-rtn")}
    found: dict[str, dict[str, list[float]]] = {name: {"overall": [], "decode": []} for name in folders}
    servers = {name: measured.served(lab, folder) for name, folder in folders.items()}
    try:
        for _ in range(int(pairs)):
            for name, server in servers.items():
                for one in measured.put_load(lab, server, lab.base, [load])[load]:
                    found[name]["overall"].append(one.wall_seconds)
    finally:
        for server in servers.values():
            server.stop()
    for _ in range(int(pairs)):
        for name, folder in folders.items():
            alone = measured.alone(lab, folder, seconds=20.0)
            found[name]["decode"].append(alone.step_ms[load.concurrency].median / 1e3)
    return found


if __name__ == "__main__":
    command, answer, *words = sys.argv[1:]
    Path(answer).write_text(json.dumps(globals()[command](*words)), encoding="utf-8")
