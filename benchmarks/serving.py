"""What INT8 wins in vLLM on this machine: output tokens of a load, and of decode alone, against BF16."""

from __future__ import annotations

from pathlib import Path

from benchmarks.measure import Bar, Result, Run, ours
from benchmarks.quantizing import make_model
from labkit.profiles import SPEED

PAIRS = 5  # a load, like a decode, takes less than 30 s
OVERALL_BARS = (Bar("wall_seconds", 1 / 1.5),)  # 1.5 times the tokens a second
DECODE_BARS = (Bar("wall_seconds", 1 / 2.0),)
MODELS = {  # with random weights; names of sides/ours.py. In many small layers less of a step is matrix products.
    "serve": (SPEED, "0.4B, two layers as wide as an 8B's,"),
    "serve-deep": ("llama-0.4b", "0.4B, 24 narrow layers,"),
}


def run(name: str, scratch: Path, pairs: int | None) -> list[Result]:
    """A load and decode alone of one of MODELS; both sides give the same number of tokens, or `put_load` fails."""
    shape, model = MODELS[name]
    base, _ = make_model(shape, scratch)
    _, found = ours("serving_pair", scratch, base, scratch / "workspace", pairs or PAIRS)

    def result(kind: str, name: str, bars: tuple[Bar, ...], what: str, turns: str) -> Result:
        int8, bf16 = (tuple(Run(round(seconds, 5)) for seconds in found[side][kind]) for side in ("int8", "bf16"))
        against, checked = "the same model in BF16, the same engine and settings", "every request got all of its tokens"
        return Result(name, f"{model} in INT8 in a vLLM {what}", against, bars, int8, bf16, f"{checked}; {turns}")

    load, step = "server: 32 requests at once, 128 tokens in, 64 out", "engine: a step of decode, 32 requests at once"
    return [
        result("overall", name, OVERALL_BARS, load, "the two servers were up at once and loaded by turns"),
        result("decode", f"{name}-decode", DECODE_BARS, step, "an engine of each by turns"),
    ]
