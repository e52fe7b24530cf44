"""An engine without a server: what its model takes in memory, and its two phases, each by itself.

A server and its clients need a processor too. On a machine of a few cores they take it from the engine, and what a load
on a server shows is all of them together. Decode and prefill are properties of the engine, so they are measured there,
for as long as they are given: how many steps fit into that is the machine's affair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from labkit.engine import model_length, number_type, run_script
from labkit.errors import UsageError
from labkit.profiles import Engine
from labkit.serving.load import Load
from labkit.serving.repeats import Repeated
from labkit.serving.settings import llm_options, quick_env
from labkit.serving.silence import Silence

CHILD = Path(__file__).with_name("phase_child.py")


@dataclass(frozen=True)
class Alone:
    """What an engine by itself measured.

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


def measure_alone(
    checkpoint: Path,
    requests: Sequence[int],
    prefill_tokens: int,
    *,
    seconds: float,
    repeats: int,
    engine: Engine,
    log: Path,
    cache: Path | None = None,
    offline: bool = True,
    seed: int = 0,
    deadline_seconds: float = 3600.0,
) -> Alone:
    """Starts an engine in a child and measures its memory, its decode and its prefill for about `seconds` in all.

    requests: how many at once, for one measurement of decode each, the most important one first: what would take more
    than twice the time is left out. Prefill is the time from one prompt of `prefill_tokens` to its first token. Each is
    repeated `repeats` times where there is time for it.

    Raises UsageError for a prompt beyond the model's context, ProcessFailed when the engine refuses the checkpoint.
    """
    context = model_length(checkpoint, engine)
    if prefill_tokens >= context:
        raise UsageError(
            f"{prefill_tokens} tokens in and one out are more than the engine's context of {context}",
            fix="ask for fewer tokens, or for a larger max_model_len",
        )
    engine = replace(engine, dtype=number_type(engine, checkpoint))
    job = {
        "model": str(checkpoint),
        "engine": llm_options(engine, context) | {"max_num_seqs": max(requests)},
        "requests": list(requests),
        "prefill_tokens": prefill_tokens,
        "seconds": seconds,
        "repeats": repeats,
        "seed": seed,
    }
    with Silence(log) as silence:
        found = run_script(
            CHILD.read_text(encoding="utf-8"),
            job | {"ready": str(silence.ready), "go": str(silence.go)},
            log=log,
            engine=engine,
            offline=offline,
            deadline_seconds=deadline_seconds,
            on_tick=silence.look,
            env=quick_env(cache),
        )
    compiled = not engine.enforce_eager
    read = [prefill_tokens / each for each in found["prefill"]]
    return Alone(
        int(found["loaded_bytes"]),
        engine.dtype,
        {int(count): Repeated.of(each, compiled) for count, each in found["decode"]},
        Repeated.of(read, compiled) if read else None,
    )
