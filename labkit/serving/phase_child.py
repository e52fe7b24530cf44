"""What runs in the engine's interpreter: one engine without a server, its memory, its decode and its prefill.

Started by labkit.engine.run_script: no labkit. The answer has the bytes that loading took; "decode", for each number of
requests at once, the milliseconds of a step in each repeat; "prefill", the seconds of each repeat. What no time was
left for is not in it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROMPT_TOKENS = 8  # of each request of a decode
MOST_STEPS = 64  # of a repeat
OTHER_STEPS = 6  # not counted: two until the prompts are read, two that show how long a step takes, two never taken


def held_bytes(llm: Any = None) -> int:
    """Bytes that this process holds for itself; on a GPU those that the engine took there to load its model."""
    import torch

    if torch.cuda.is_available():
        return sum(llm.collective_rpc(lambda worker: int(worker.model_runner.model_memory_usage))) if llm else 0
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed and not given back is not held
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def timed(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def step_ms(engine: Any, prompts: list[list[int]], repeats: int, seconds: float, context: int) -> list[float]:
    """The mean milliseconds of a step that gives one token to each request, in each repeat.

    As many steps as `seconds` allow, the same for each repeat. Where one takes longer than all of them may, it is the
    only one.
    """
    from vllm import SamplingParams

    names = [f"{len(prompts)}-{number}" for number in range(len(prompts))]
    most = min(MOST_STEPS, (context - PROMPT_TOKENS - OTHER_STEPS) // repeats)
    tokens = most * repeats + OTHER_STEPS
    asked = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    for name, prompt in zip(names, prompts, strict=True):
        engine.add_request(name, {"prompt_token_ids": prompt}, asked)
    engine.step()  # reads the prompts; on a GPU, where steps are scheduled ahead, it may end the batch before this one
    engine.step()
    first = timed(engine.step)
    found = [first * 1e3]
    if first < seconds:
        first = timed(engine.step)  # the one before it made what later ones use
        steps = max(1, min(most, int(seconds / repeats / first)))
        found = [timed(lambda: [engine.step() for _ in range(steps)]) / steps * 1e3 for _ in range(repeats)]
    if not engine.has_unfinished_requests():
        raise RuntimeError(f"{len(prompts)} requests ended before their steps were measured")
    engine.abort_request(names)
    while engine.has_unfinished_requests():
        engine.step()
    return found


def prefill_seconds(llm: Any, prompts: Iterator[list[int]], repeats: int, seconds: float) -> list[float]:
    """The seconds from a prompt to its first token, as often as `seconds` and `repeats` allow, once at least."""
    from vllm import SamplingParams

    asked = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
    found: list[float] = []
    while len(found) < repeats and (not found or sum(found) + found[-1] < seconds):
        prompt = {"prompt_token_ids": next(prompts)}
        found.append(timed(lambda prompt=prompt: llm.generate(prompt, asked, use_tqdm=False)))
    return found


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
    answer: dict[str, Any] = {"loaded_bytes": held_bytes(llm) - before, "decode": [], "prefill": []}
    source = random.Random(job["seed"])
    vocabulary = llm.get_tokenizer().vocab_size

    def prompt(tokens: int) -> list[int]:
        return [source.randrange(vocabulary) for _ in range(tokens)]

    repeats, each = job["repeats"], job["seconds"] / (1 + len(job["requests"]))
    wait_for_silence(job)
    ends = time.perf_counter() + 2 * job["seconds"]  # an engine may be slower than it can be asked to measure in time
    for requests in job["requests"]:
        if not answer["decode"] or time.perf_counter() < ends:
            prompts = [prompt(PROMPT_TOKENS) for _ in range(requests)]
            answer["decode"].append(
                [requests, step_ms(llm.llm_engine, prompts, repeats, each, job["engine"]["max_model_len"])]
            )
        if not answer["prefill"] and time.perf_counter() < ends:
            prefill_seconds(llm, iter([prompt(PROMPT_TOKENS)]), 1, each)
            prompts_read = (prompt(job["prefill_tokens"]) for _ in range(repeats))
            answer["prefill"] = prefill_seconds(llm, prompts_read, repeats, each)
    return answer


if "job" in globals():
    answer = main(globals()["job"])
