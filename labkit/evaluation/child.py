"""What runs in the engine's interpreter: lm-eval on one model after another.

Started by labkit.engine.run_script: standard library, vllm and lm_eval only, no labkit. The job (made in `run.py`) is
{"requests": [...], "tasks": {name: ...}, "engine": {...}, "seed", "scratch", "isolate", "progress"}; requests with
equal `engine_key` stand together and share one loaded model. The answer is {"results": [...], "versions": {...}} for
the first requests: all of them on a CPU, those of one engine on a GPU (or where `isolate` says so), because there only
the end of a process gives the memory back.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_task(job: dict[str, Any], request: dict[str, Any]) -> str:
    """A task file that includes the definition and says where the rows are; JSON is YAML. Returns its path.

    Splits of the definition that have no local file are switched off, or the data set would be asked for them.
    """
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    name, files = request["task"], job["tasks"][request["task"]]
    packaged = Path(lm_eval.__file__).parent / "tasks" / name / f"{name}.yaml"
    definition = Path(files["definition"] or packaged)
    if not definition.exists():
        raise FileNotFoundError(
            f"lm-eval has no task file {definition}; labkit runs tasks that have one of their own name"
        )
    config: dict[str, Any] = {"include": str(definition), "task": name, "num_fewshot": request["num_fewshot"]}
    if files["data_files"]:
        config |= {
            key: None
            for key, split in load_yaml(definition, resolve_func=False).items()
            if key.endswith("_split") and split not in files["data_files"]
        }
        config |= {
            "dataset_path": "json",
            "dataset_name": None,
            "dataset_kwargs": {"data_files": files["data_files"], "cache_dir": job["scratch"]},
        }
    path = Path(job["scratch"]) / f"{name}-{request['num_fewshot']}.yaml"
    path.write_text(json.dumps(config))
    return str(path)


def effective_bos(request: dict[str, Any]) -> tuple[bool, int | None]:
    """`add_bos_token` and `prefix_token_id` for lm-eval; a tokenizer without BOS can't add one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["checkpoint"])
    if tokenizer.bos_token_id is None:
        return False, None
    if request["double_bos"] and request["kind"] == "accuracy":
        return True, next(i for i in (tokenizer.eos_token_id, 0, 1) if i not in (None, tokenizer.bos_token_id))
    return request["add_bos"], None


def hf_model(job: dict[str, Any], request: dict[str, Any], model: Any, **more: Any) -> Any:
    """A checkpoint, or a model that is in memory, in lm-eval's class for transformers; `more` for that class."""
    import torch
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=model,
        device="cuda" if torch.cuda.is_available() else "cpu",
        dtype=request["dtype"],
        softmax_dtype="float32",  # in BF16 log-likelihoods of different models tie exactly
        max_length=request["max_model_len"],
        add_bos_token=effective_bos(request)[0],
        **{"batch_size": 16, **more},
    )


def load(job: dict[str, Any], request: dict[str, Any]) -> Any:
    """The model in lm-eval's own class for the backend."""
    engine = job["engine"]
    if request["backend"] == "hf":
        return hf_model(job, request, request["checkpoint"])
    add_bos, prefix = effective_bos(request)
    from lm_eval.models.vllm_causallms import VLLM
    from vllm.platforms import current_platform

    gc.freeze()  # vLLM looks for garbage five times while it starts: in all that was imported, almost 2 s an engine
    memory = {} if current_platform.is_cpu() else {"gpu_memory_utilization": engine["gpu_memory_utilization"]}
    return VLLM(
        pretrained=request["checkpoint"],
        dtype=request["dtype"],
        max_model_len=request["max_model_len"],
        enforce_eager=engine["enforce_eager"],
        seed=job["seed"],
        add_bos_token=add_bos,
        prefix_token_id=prefix,
        batch_size="auto",
        kv_cache_dtype=request["kv_cache_dtype"],
        tensor_parallel_size=engine["tensor_parallel"],
        **memory,
    )


def bos_at_start(lm: Any, request: dict[str, Any], text: str) -> int:
    """How many BOS tokens really stand before the first row, encoded by the code that encoded it for the model."""
    bos = lm.tokenizer.bos_token_id
    if request["kind"] == "perplexity":
        ids = [lm.prefix_token_id, *lm.tok_encode(text)]
    elif request["backend"] == "hf":
        ids = lm.tok_batch_encode([text])[0][0].tolist()
    else:
        ids = lm.tok_encode(text)
    return next((i for i, token in enumerate(ids) if token != bos), len(ids)) if bos is not None else 0


def sample_row(sample: dict[str, Any], metric: str, kind: str) -> dict[str, Any]:
    """One logged sample of lm-eval as labkit's `Sample`."""
    figure, weight = sample[metric], 1.0
    if kind == "perplexity":
        loglikelihood, weight = figure
        score = loglikelihood / weight
    elif isinstance(figure, (list, tuple)):
        score, weight = sum(map(float, figure)) / len(figure), float(len(figure))
    else:
        score = float(figure)
    generated = kind != "perplexity"
    return {
        "doc_id": sample["doc_id"],
        "score": score,
        "weight": weight,
        "prediction": str(sample["filtered_resps"][0]),
        "target": str(sample["target"]) if generated else "",
        "prompt_sha256": sample["prompt_hash"],
        "response": str(sample["resps"][0][0]) if generated else "",
    }


@contextlib.contextmanager
def without_waste() -> Iterator[None]:
    """Spares lm-eval what it does again and again for the same result, or for one that labkit does not keep.

    It compiles a task's templates anew for every row, a tenth of an evaluation of short prompts, and after each
    evaluation has `pip` list what is installed, for its own results file. Both stand as they were afterwards: this may
    be a notebook's process.
    """
    from lm_eval import evaluator, utils

    compile_template, describe = utils.env.from_string, evaluator.add_env_info
    utils.env.from_string = functools.cache(compile_template)
    evaluator.add_env_info = lambda storage: None
    try:
        yield
    finally:
        utils.env.from_string, evaluator.add_env_info = compile_template, describe


def evaluate(lm: Any, job: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """One call of lm-eval, and what labkit keeps of it."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    template = lm.tokenizer.chat_template if request["chat_template"] else None
    if request["chat_template"] and not template:
        raise ValueError(f"the tokenizer of {request['checkpoint']} has no chat template; evaluate it without one")
    began, seed, name = time.monotonic(), job["seed"], request["task"]
    with without_waste():
        found = lm_eval.simple_evaluate(
            model=lm,
            tasks=[write_task(job, request)],
            task_manager=TaskManager(include_defaults=False),
            limit=request["limit"],
            apply_chat_template=request["chat_template"],
            fewshot_as_multiturn=request["chat_template"],
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    metrics = {k: v for k, v in found["results"][name].items() if "," in k and isinstance(v, (int, float))}
    samples = [s for s in found["samples"][name] if s["filter"] == request["filter"]]
    figure = f"{request['metric']},{request['filter']}"
    if figure not in metrics or not samples:
        raise KeyError(f"task {name} gave no {figure}; it gave {', '.join(sorted(metrics))}")
    generation = json.loads(json.dumps(found["configs"][name].get("generation_kwargs") or {}, default=str))
    if request["kind"] == "accuracy":
        generation.setdefault("max_gen_toks", lm.max_gen_toks)
    return {
        "metrics": metrics,
        "value": metrics[figure],
        "samples": [sample_row(s, request["metric"], request["kind"]) for s in samples],
        "settings": {
            "chat_template": hashlib.sha256(str(template).encode()).hexdigest()[:12] if template else "none",
            "bos_at_start": bos_at_start(lm, request, samples[0]["arguments"][0][0]),
            "generation": generation,
            "task_version": found["versions"].get(name),
        },
        "wall_seconds": time.monotonic() - began,
        "cache_tokens": cache_tokens(lm),
    }


def cache_tokens(lm: Any) -> int:
    """Tokens that the engine's KV cache holds; 0 where there is no engine."""
    if not hasattr(lm.model, "llm_engine"):
        return 0
    cache = lm.model.llm_engine.vllm_config.cache_config
    return int(cache.num_gpu_blocks * cache.block_size)  # "gpu" on a CPU, too


def shut_down(lm: Any) -> None:
    """Ends an engine inside this process, as far as that goes (on a CPU it goes far enough for the next one)."""
    if hasattr(lm.model, "llm_engine"):
        lm.model.llm_engine.engine_core.shutdown()


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Runs the job's requests in their order; see the module's docstring for when it stops early."""
    requests, results = job["requests"], []
    lm, loaded, alone, ended = None, None, False, time.monotonic()
    for number, request in enumerate(requests):
        doing = f"{request['variant']}: {request['task']}"
        Path(job["progress"]).write_text(json.dumps([number, doing]))
        print(f"labkit: {number + 1} of {len(requests)}: {doing}", flush=True)
        if request["engine_key"] != loaded:
            if lm is not None:
                if alone:
                    break
                shut_down(lm)
                lm = None  # before the next one is loaded
                gc.collect()
            lm, loaded = load(job, request), request["engine_key"]
            import torch

            alone = torch.cuda.is_available() if job["isolate"] is None else job["isolate"]
        starting = time.monotonic() - ended  # next to nothing where the model was loaded already
        results.append({**evaluate(lm, job, request), "engine_start_seconds": starting})
        ended = time.monotonic()
    packages = ("lm_eval", "vllm", "transformers", "torch", "compressed-tensors")
    return {"results": results, "versions": {name: importlib.metadata.version(name) for name in packages}}


if "job" in globals():
    answer = main(globals()["job"])
