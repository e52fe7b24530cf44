"""Speed: loads on a server, measured by vLLM's own benchmark, and an engine without a server.

A server and its clients need a processor too. On a machine of a few cores they take it from the engine, and what a load
on a server shows is all of them together. Decode and prefill are properties of the engine, so they are measured on it
alone, for as long as they are given: how many steps fit into that is up to the machine.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import random
import statistics
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from labkit import engine as engines
from labkit import hardware
from labkit.errors import ProcessFailed, UsageError
from labkit.serve.server import Server
from labkit.store import Context

PROMPT_TOKENS = 8  # of each request of a decode
MOST_STEPS = 64  # of a repeat
DYING_SECONDS = 10.0  # after which a server whose engine has died has ended, too
OTHER_STEPS = 6  # not counted: two until the prompts are read, two that show how long a step takes, two never taken


@dataclass(frozen=True)
class Repeated:
    """A figure over the repeats of a measurement: median, smallest and largest; whether the engine was compiled."""

    median: float
    low: float
    high: float
    repeats: int
    compiled: bool

    @staticmethod
    def of(values: Sequence[float], compiled: bool) -> Repeated:
        return Repeated(statistics.median(values), min(values), max(values), len(values), compiled)

    def over(self, other: Repeated) -> Repeated:
        """This figure over another: of the medians, and the smallest and largest that any of the repeats would give."""
        repeats = min(self.repeats, other.repeats)
        return Repeated(
            self.median / other.median, self.low / other.high, self.high / other.low, repeats, self.compiled
        )

    @property
    def verdict(self) -> str:
        """Of a ratio: whether its repeats tell the two sides apart, as far as the digits that are shown of it."""
        if self.repeats == 1:
            return "Measured once, so without a spread"
        if round(self.low, 2) <= 1 <= round(self.high, 2):
            return "The repeats do not tell the two apart"
        if self.median > 1:
            return "Its slowest repeat is above the baseline's fastest"
        return "Its fastest repeat is below the baseline's slowest"

    def __str__(self) -> str:
        median, low, high = (f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in (self.median, self.low, self.high))
        return median + (f" ({low} to {high})" if self.repeats > 1 else "")


# --- loads on a server ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """`requests` requests, at most `concurrency` of them at once, each of `input_tokens` in and `output_tokens` out."""

    concurrency: int
    requests: int
    input_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise UsageError(f"{name} is {value}", fix="give a whole number from 1 up")

    def shortened(self, share: float) -> Load:
        """The same with a share of its tokens in and out, 8 of each at least; with all of them for a share above 1."""
        tokens = (max(8, int(count * min(1.0, share))) for count in (self.input_tokens, self.output_tokens))
        return Load(self.concurrency, self.requests, *tokens)


@dataclass(frozen=True)
class Loaded:
    """What one load measured.

    request_per_s and output_tok_per_s over the load's whole `wall_seconds`; over its requests, median and 99th
    percentile of the time to the first token (`ttft`) and between two tokens (`itl`), in milliseconds.
    """

    load: Load
    seed: int
    wall_seconds: float
    request_per_s: float
    output_tok_per_s: float
    ttft_ms: float
    ttft_p99_ms: float
    itl_ms: float
    itl_p99_ms: float
    compiled: bool


def bench_command(server: Server, tokenizer: Path, load: Load, seed: int) -> list[str]:
    """The command line of one load, without the key (the benchmark reads it from $OPENAI_API_KEY)."""
    command = ["vllm", "bench", "serve", "--backend", "openai", "--base-url", server.url.removesuffix("/v1")]
    command += ["--model", server.model, "--tokenizer", str(tokenizer), "--dataset-name", "random"]
    command += ["--random-input-len", str(load.input_tokens), "--random-output-len", str(load.output_tokens)]
    command += ["--num-prompts", str(load.requests), "--max-concurrency", str(load.concurrency)]
    command += ["--ignore-eos", "--temperature", "0", "--seed", str(seed)]
    return [*command, "--percentile-metrics", "ttft,itl", "--metric-percentiles", "99"]


def put_load(
    server: Server,
    loads: Sequence[Load],
    context: Context,
    *,
    tokenizer: Path,
    log: Path,
    on_tick: Callable[[int], None] = lambda _: None,
) -> list[Loaded]:
    """Puts one load after another on a server (all by one benchmark process), and returns what each measured.

    The server's first load has the profile's seed, each further one the next, in later calls too, so that no prompt is
    cached from an earlier load. on_tick: called with the number of loads done.

    Raises UsageError for a load longer than the server's context, before anything is sent; ProcessFailed when the
    server dies under the load or any request fails: a throughput over fewer requests would look whole.
    """
    for load in loads:
        _require_fit(load.input_tokens, load.output_tokens, server.context)
    server.require_alive()
    seeds = range(context.seed + server.loads, context.seed + server.loads + len(loads))
    server.loads += len(loads)
    commands = [bench_command(server, tokenizer, load, seed) for load, seed in zip(loads, seeds, strict=True)]
    env = {"OPENAI_API_KEY": server.key}
    try:
        answers = engines.run(_bench, commands, context, log=log, env=env, on_progress=on_tick)
        return [_loaded(load, seed, answer, server) for load, seed, answer in zip(loads, seeds, answers, strict=True)]
    except ProcessFailed:
        server.require_alive(DYING_SECONDS)  # a dead server is the cause, whatever its client says
        raise


def _require_fit(tokens_in: int, tokens_out: int, context: int) -> None:
    if tokens_in + tokens_out > context:
        what = f"{tokens_in} tokens in and {tokens_out} out are more than the engine's context of {context}"
        raise UsageError(what, fix="ask for fewer tokens, or for a larger max_model_len")


def _bench(commands: Sequence[Sequence[str]], tell: engines.Tell) -> list[dict[str, Any]]:
    """In a process of its own: `vllm bench serve` for each command, without starting an interpreter for each."""
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    answers = []
    for command in commands:
        words = [*command[3:], "--disable-tqdm", "--ready-check-timeout-sec", "0"]  # after "vllm bench serve"
        answers.append(serve.main(parser.parse_args(words)))
        tell(len(answers))
    return answers


def _loaded(load: Load, seed: int, answer: Mapping[str, Any], server: Server) -> Loaded:
    completed, sent, expected = answer["completed"], answer["total_output_tokens"], load.requests * load.output_tokens
    if completed != load.requests or sent != expected:
        error = next(filter(None, answer.get("errors", [])), "")[-500:]
        what = f"{server.model} finished {completed} of {load.requests} requests and sent {sent} of {expected} tokens"
        why = f"a throughput over some of the requests would look whole; the first error: {error}"
        raise ProcessFailed(what, why, fix=f"look at {server.log}")
    return Loaded(
        load=load,
        seed=seed,
        wall_seconds=answer["duration"],
        request_per_s=answer["request_throughput"],
        output_tok_per_s=answer["output_throughput"],
        ttft_ms=answer["median_ttft_ms"],
        ttft_p99_ms=answer["p99_ttft_ms"],
        itl_ms=answer["median_itl_ms"],
        itl_p99_ms=answer["p99_itl_ms"],
        compiled=server.compiled,
    )


# --- an engine without a server ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alone:
    """What an engine without a server measured.

    loaded_bytes: what it took to load the model and get ready. On a CPU that is memory of the process, cache and all:
    differences between variants tell, and not the figure itself. On a GPU it is the weights there. dtype: what it
    computes in where nothing is quantized. step_ms: by the number of requests at once, the milliseconds of a step of
    decode, which gives one token to each. prefill_tok_per_s: prompt tokens read in a second. What took longer than
    there was time is missing.
    """

    loaded_bytes: int
    dtype: str
    step_ms: Mapping[int, Repeated]
    prefill_tok_per_s: Repeated | None

    def decode_tok_per_s(self, requests: int) -> Repeated:
        """Tokens a second of so many requests at once."""
        step = self.step_ms[requests]
        fast, middle, slow = (requests * 1e3 / ms for ms in (step.low, step.median, step.high))
        return replace(step, median=middle, low=slow, high=fast)

    def seconds_of(self, load: Load) -> float:
        """About how long the engine works for a load, by what it measured; what a server and clients take is more.

        At least that long where prefill was left out.
        """
        steps = load.requests / load.concurrency * load.output_tokens
        read = load.requests * load.input_tokens / self.prefill_tok_per_s.median if self.prefill_tok_per_s else 0.0
        return read + steps * self.step_ms[load.concurrency].median / 1e3


@dataclass(frozen=True)
class _Plan:
    """What one engine is to measure; see `measure_alone`. options: of `vllm.LLM`."""

    options: dict[str, Any]
    requests: Sequence[int]
    prefill_tokens: int
    seconds: float
    repeats: int
    seed: int


def measure_alone(
    checkpoint: Path,
    requests: Sequence[int],
    prefill_tokens: int,
    context: Context,
    *,
    seconds: float,
    repeats: int,
    log: Path,
) -> Alone:
    """Starts an engine and measures its memory, its decode and its prefill for about `seconds` in all.

    requests: how many at once, for one measurement of decode each, the most important one first: what would take more
    than twice the time is left out. Prefill is the time from one prompt of `prefill_tokens` to its first token. Each is
    repeated `repeats` times where there is time for it.

    Raises UsageError for a prompt beyond the model's context, ProcessFailed when the engine refuses the checkpoint.
    """
    engine, length = context.engine, engines.model_length(checkpoint, context.engine)
    _require_fit(prefill_tokens, 1, length)
    dtype, compiled = engines.number_type(engine, checkpoint), not engine.enforce_eager
    options = {
        "model": str(checkpoint),
        "max_model_len": length,
        "max_num_seqs": max(requests),
        "dtype": dtype,
        "enforce_eager": engine.enforce_eager,
        "tensor_parallel_size": engine.tensor_parallel,
        "enable_prefix_caching": False,
    }
    if hardware.engine_build() == "cuda":
        options["gpu_memory_utilization"] = engine.gpu_memory_utilization
    plan = _Plan(options, requests, prefill_tokens, seconds, repeats, context.seed)
    loaded_bytes, decode, prefill = engines.run(_measure, plan, context, log=log)
    step_ms = {count: Repeated.of(each, compiled) for count, each in decode.items()}
    read = Repeated.of([prefill_tokens / each for each in prefill], compiled) if prefill else None
    return Alone(loaded_bytes, dtype, step_ms, read)


def _measure(plan: _Plan, _: engines.Tell) -> tuple[int, dict[int, list[float]], list[float]]:
    """In the engine's process: bytes that loading took, milliseconds of a step by requests, seconds of a prefill."""
    import torch
    import vllm

    if not torch.cuda.is_available():  # imported before the first look, so that code does not count as the model's
        importlib.import_module("vllm.v1.worker.cpu_worker")
    before = _held_bytes()
    llm = vllm.LLM(**plan.options)
    loaded_bytes = _held_bytes(llm) - before
    source, vocabulary = random.Random(plan.seed), llm.get_tokenizer().vocab_size

    def prompts(count: int, tokens: int) -> list[Any]:
        return [{"prompt_token_ids": [source.randrange(vocabulary) for _ in range(tokens)]} for _ in range(count)]

    def first_token(tokens: int) -> float:
        prompt, asked = prompts(1, tokens), vllm.SamplingParams(temperature=0, max_tokens=1, detokenize=False)
        return timeit.timeit(lambda: llm.generate(prompt, asked, use_tqdm=False), number=1)

    decode: dict[int, list[float]] = {}
    prefill: list[float] = []
    each = plan.seconds / (1 + len(plan.requests))
    ends = time.perf_counter() + 2 * plan.seconds  # an engine may be slower than it can be asked to measure in time
    for requests in plan.requests:
        if not decode or time.perf_counter() < ends:
            decode[requests] = _step_ms(llm.llm_engine, prompts(requests, PROMPT_TOKENS), plan, each)
        if not prefill and time.perf_counter() < ends:
            first_token(PROMPT_TOKENS)  # makes what later ones use
            while len(prefill) < plan.repeats and (not prefill or sum(prefill) + prefill[-1] < each):
                prefill.append(first_token(plan.prefill_tokens))
    return loaded_bytes, decode, prefill


def _held_bytes(llm: Any = None) -> int:
    """Bytes that this process holds for itself; on a GPU those that the engine took there to load its model."""
    import torch

    if torch.cuda.is_available():
        return sum(llm.collective_rpc(lambda worker: int(worker.model_runner.model_memory_usage))) if llm else 0
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed and not given back is not held
    with open(f"/proc/{os.getpid()}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))


def _step_ms(engine: Any, prompts: Sequence[Any], plan: _Plan, seconds: float) -> list[float]:
    """The mean milliseconds of a step that gives one token to each request, in each repeat.

    As many steps as `seconds` allow, the same for each repeat. Where one takes longer than all of them may, it is the
    only one.
    """
    from vllm import SamplingParams

    repeats = plan.repeats
    most = min(MOST_STEPS, (plan.options["max_model_len"] - PROMPT_TOKENS - OTHER_STEPS) // repeats)
    tokens = most * repeats + OTHER_STEPS
    asked = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    names = [str(number) for number in range(len(prompts))]
    for name, prompt in zip(names, prompts, strict=True):
        engine.add_request(name, prompt, asked)
    engine.step()  # reads the prompts; on a GPU, where steps are scheduled ahead, it may end the batch before this one
    engine.step()
    first, steps = timeit.timeit(engine.step, number=1), 1
    found = [first]
    if first < seconds:
        first = timeit.timeit(engine.step, number=1)  # the one before it made what later ones use
        steps = max(1, min(most, int(seconds / repeats / first)))
        found = timeit.repeat(engine.step, repeat=repeats, number=steps)
    if not engine.has_unfinished_requests():
        raise RuntimeError(f"{len(prompts)} requests ended before their steps were measured")
    engine.abort_request(names)
    while engine.has_unfinished_requests():
        engine.step()
    return [taken / steps * 1e3 for taken in found]
