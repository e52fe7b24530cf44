"""What runs in the engine's interpreter: one engine without a server, its memory, its decode and its prefill.

Started by labkit.engine.run_script: no labkit. The answer has the bytes that loading took and, for each repeat, the
seconds of three batches: decode's prompts with one token of answer, as many with all its tokens, and prefill's.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import random
import time
from pathlib import Path
from typing import Any


def held_bytes(llm: Any = None) -> int:
    """Bytes that this process holds for itself; on a GPU those that the engine took there to load its model."""
    import torch

    if torch.cuda.is_available():
        return sum(llm.collective_rpc(lambda worker: int(worker.model_runner.model_memory_usage))) if llm else 0
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed and not given back is not held
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def seconds(llm: Any, prompts: list[list[int]], tokens: int) -> float:
    """The time of one batch; every request gets exactly so many tokens."""
    from vllm import SamplingParams

    asked = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    began = time.perf_counter()
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False)
    taken = time.perf_counter() - began
    answered = [len(output.outputs[0].token_ids) for output in outputs]
    if answered != [tokens] * len(prompts):
        raise RuntimeError(f"{len(prompts)} requests of {tokens} tokens were answered with {answered}")
    return taken


def wait_for_silence(job: dict[str, Any]) -> None:
    """Says that it could begin, and returns when it may."""
    Path(job["ready"]).touch()
    while not Path(job["go"]).exists():
        time.sleep(0.02)


def main(job: dict[str, Any]) -> dict[str, Any]:
    import torch
    import vllm

    if not torch.cuda.is_available():  # imported before the first look, so that code does not count as the model's
        importlib.import_module("vllm.v1.worker.cpu_worker")
    before = held_bytes()
    llm = vllm.LLM(model=job["model"], enable_prefix_caching=False, **job["engine"])
    loaded = held_bytes(llm) - before
    source = random.Random(job["seed"])
    vocabulary = llm.get_tokenizer().vocab_size

    def batch(load: dict[str, int], answer: int) -> float:
        tokens = range(load["input_tokens"])
        return seconds(llm, [[source.randrange(vocabulary) for _ in tokens] for _ in range(load["requests"])], answer)

    def measured(answer: int) -> list[float]:
        return [batch(job["decode"], 1), batch(job["decode"], answer), batch(job["prefill"], 1)]

    if job["repeats"]:
        measured(2)  # the first of each kind makes what the later ones use
        wait_for_silence(job)
    repeats = [measured(job["decode"]["output_tokens"]) for _ in range(job["repeats"])]
    return {"loaded_bytes": loaded, "repeats": repeats}


if "job" in globals():
    answer = main(globals()["job"])
