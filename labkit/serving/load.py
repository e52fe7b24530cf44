"""Load on a server, measured by vLLM's own benchmark (`vllm bench serve`): many clients at once, random prompts.

All loads of one server run in one child process, because starting the benchmark takes ten seconds and a load may take
two. What a load asks for is fixed: so many requests of so many tokens in and out (`--ignore-eos`), from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labkit.engine import run_script
from labkit.errors import ProcessFailed, UsageError
from labkit.profiles import Engine
from labkit.serving.server import Server
from labkit.serving.silence import Silence

CHILD = Path(__file__).with_name("load_child.py")


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

    def require_within(self, context: int) -> None:
        """Raises UsageError if a request and its answer are longer than a context."""
        if self.input_tokens + self.output_tokens > context:
            raise UsageError(
                f"{self.input_tokens} tokens in and {self.output_tokens} out are more than the engine's context of "
                f"{context}",
                fix="ask for fewer tokens, or for a larger max_model_len",
            )


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
    *,
    tokenizer: Path,
    engine: Engine,
    log: Path,
    seed: int = 0,
    offline: bool = True,
    deadline_seconds: float = 3600.0,
    on_tick: Callable[[int], None] | None = None,
) -> list[Loaded]:
    """Puts one load after another on a server, and returns what each measured.

    The server need not be ready: the benchmark takes seconds to start, meanwhile it may come up.

    seed: of the server's first load; each further one takes the next, in later calls too, so that no prompt is cached
    from an earlier load.
    on_tick: called with the number of loads done.

    Raises UsageError for a load longer than the server's context, before anything is sent; ProcessFailed when the
    server dies under the load or any request fails: a throughput over fewer requests would look whole.
    """
    for load in loads:
        load.require_within(server.context)
    server.require_alive()
    first = seed + server.loads
    server.loads += len(loads)
    commands = [bench_command(server, tokenizer, load, number) for number, load in enumerate(loads, first)]
    progress = log.with_suffix(".progress")
    progress.unlink(missing_ok=True)

    def look() -> None:
        if server.is_ready():
            silence.ready.touch()
        silence.look()
        if on_tick and progress.exists():
            on_tick(int(progress.read_text()))

    try:
        with Silence(log) as silence:
            answers = run_script(
                CHILD.read_text(encoding="utf-8"),
                {"commands": commands, "go": str(silence.go), "progress": str(progress)},
                log=log,
                engine=engine,
                offline=offline,
                deadline_seconds=deadline_seconds,
                on_tick=look,
                env={"OPENAI_API_KEY": server.key},
            )
    except ProcessFailed:
        server.require_alive()  # a dead server is the cause, whatever its client says
        raise
    finally:
        progress.unlink(missing_ok=True)
    return [
        _loaded(load, number, answer, server)
        for number, (load, answer) in enumerate(zip(loads, answers, strict=True), first)
    ]


def _loaded(load: Load, seed: int, answer: dict[str, Any], server: Server) -> Loaded:
    expected = load.requests * load.output_tokens
    if answer["completed"] != load.requests or answer["total_output_tokens"] != expected:
        raise ProcessFailed(
            f"{server.model} finished {answer['completed']} of {load.requests} requests and sent "
            f"{answer['total_output_tokens']} of {expected} tokens",
            why=f"a throughput over some of the requests would look whole; the first error: {answer['error']}",
            fix=f"look at {server.log}",
        )
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
