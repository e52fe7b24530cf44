"""What INT8 wins in vLLM on this machine: output tokens of a load, and of decode alone, against BF16."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.measure import OFFLINE, SIDES, timed
from benchmarks.quantizing import make_model
from benchmarks.results import Bar, Result, Run

OVERALL, DECODE = "serve", "serve-decode"
PAIRS = 3
DEADLINE_SECONDS = 1800.0
OVERALL_BARS = (Bar("wall_seconds", 1 / 1.5),)  # 1.5 times the tokens a second
DECODE_BARS = (Bar("wall_seconds", 1 / 2.0),)


def run(scratch: Path, pairs: int | None) -> list[Result]:
    """A 0.4B model with random weights; both sides answer the same number of tokens, or serving.put_load fails."""
    base, _ = make_model("llama-0.4b", scratch)
    answer = scratch / "answer.json"
    words = map(str, (SIDES / "serving_pair.py", base, scratch / "workspace", answer, pairs or PAIRS))
    timed([sys.executable, *words], scratch / "log", deadline_seconds=DEADLINE_SECONDS, env=OFFLINE, cwd=scratch)
    found = json.loads(answer.read_text(encoding="utf-8"))

    def result(name: str, what: str, kind: str, bars: tuple[Bar, ...], checked: str) -> Result:
        ours, theirs = (tuple(Run(round(seconds, 5)) for seconds in found[side][kind]) for side in ("int8", "bf16"))
        return Result(name, what, "the same model in BF16, the same engine and settings", bars, ours, theirs, checked)

    return [
        result(
            OVERALL,
            "0.4B in INT8 in a vLLM server: 32 requests at once, 128 tokens in, 64 out",
            "overall",
            OVERALL_BARS,
            "every request got all of its tokens; the two servers were up at once and loaded by turns",
        ),
        result(
            DECODE,
            "0.4B in INT8 in a vLLM engine: a step of decode, 32 requests at once",
            "decode",
            DECODE_BARS,
            "every request got all of its tokens; one engine after the other",
        ),
    ]
