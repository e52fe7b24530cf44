"""An engine without a server: what its model takes in memory, and its two phases, each by itself.

A server and its clients need a processor too. On a machine of a few cores they take it from the engine, and what a load
on a server shows is all of them together. Decode and prefill are properties of the engine, so they are measured there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from labkit.engine import model_length, run_script
from labkit.errors import UsageError
from labkit.profiles import Engine
from labkit.serving.load import Load
from labkit.serving.settings import llm_options, quick_env
from labkit.serving.silence import Silence

CHILD = Path(__file__).with_name("phase_child.py")


@dataclass(frozen=True)
class Phases:
    """One repeat: output tokens per second of decode, the ms of one of its steps, prompt tokens per second of prefill.

    A step of decode gives one token to each running request.
    """

    decode_tok_per_s: float
    step_ms: float
    prefill_tok_per_s: float
    compiled: bool

    @staticmethod
    def of(decode: Load, prefill: Load, seconds: Sequence[float], compiled: bool) -> Phases:
        """From the seconds of decode's first tokens alone, of all its tokens, and of prefill."""
        first, whole, read = seconds
        steps = decode.output_tokens - 1
        step = (whole - first) / steps
        return Phases(decode.requests / step, step * 1e3, prefill.requests * prefill.input_tokens / read, compiled)


@dataclass(frozen=True)
class Alone:
    """What an engine by itself measured.

    loaded_bytes: what it took to load the model and get ready. On a CPU that is memory of the process, cache and all:
    differences between variants tell, and not the figure itself. On a GPU it is the weights there.
    """

    loaded_bytes: int
    repeats: tuple[Phases, ...]


def measure_alone(
    checkpoint: Path,
    decode: Load,
    prefill: Load,
    *,
    repeats: int,
    engine: Engine,
    log: Path,
    cache: Path | None = None,
    offline: bool = True,
    seed: int = 0,
    deadline_seconds: float = 3600.0,
) -> Alone:
    """Starts an engine in a child and measures its memory and, `repeats` times, its phases.

    decode, prefill: what each phase is measured with, all its requests at once. Decode counts the steps after the first
    token: the time of all its output tokens less that of one each. Prefill is the time to one token of each request.
    repeats: 0 for memory alone.

    Raises UsageError for a request beyond the model's context or a decode of one token, ProcessFailed when the engine
    refuses the checkpoint.
    """
    context = model_length(checkpoint, engine)
    for load in (decode, prefill):
        load.require_within(context)
    if decode.output_tokens < 2:
        raise UsageError("a decode of one token has no step after the first", fix="ask for two output tokens or more")
    options = llm_options(engine, context) | {"max_num_seqs": max(decode.requests, prefill.requests)}
    job = {"model": str(checkpoint), "engine": options, "decode": asdict(decode), "prefill": asdict(prefill)}
    with Silence(log) as silence:
        found = run_script(
            CHILD.read_text(encoding="utf-8"),
            job | {"repeats": repeats, "seed": seed, "ready": str(silence.ready), "go": str(silence.go)},
            log=log,
            engine=engine,
            offline=offline,
            deadline_seconds=deadline_seconds,
            on_tick=silence.look,
            env=quick_env(cache),
        )
    compiled = not engine.enforce_eager
    return Alone(
        int(found["loaded_bytes"]), tuple(Phases.of(decode, prefill, each, compiled) for each in found["repeats"])
    )
