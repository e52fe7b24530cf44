"""What INT8 wins in vLLM on this machine: output tokens of a load, and of decode alone, against BF16."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import OFFLINE, SIDES, timed
from benchmarks.quantizing import make_model
from benchmarks.results import Bar, Result, Run
from labkit.profiles import SPEED

DEADLINE_SECONDS = 1800.0
PAIRS = 5  # a load, like a decode, takes less than 30 s
OVERALL_BARS = (Bar("wall_seconds", 1 / 1.5),)  # 1.5 times the tokens a second
DECODE_BARS = (Bar("wall_seconds", 1 / 2.0),)


@dataclass(frozen=True)
class Serving:
    """One model of 0.4B with random weights in INT8 and in BF16. shape: a name in sides/make_models.py."""

    overall: str
    decode: str
    what: str
    shape: str

    def run(self, scratch: Path, pairs: int | None) -> list[Result]:
        """Both sides answer the same number of tokens, or serving.put_load fails."""
        base, _ = make_model(self.shape, scratch)
        answer = scratch / "answer.json"
        words = map(str, (SIDES / "serving_pair.py", base, scratch / "workspace", answer, pairs or PAIRS))
        timed([sys.executable, *words], scratch / "log", deadline_seconds=DEADLINE_SECONDS, env=OFFLINE, cwd=scratch)
        found = json.loads(answer.read_text(encoding="utf-8"))

        def result(name: str, what: str, kind: str, bars: tuple[Bar, ...], checked: str) -> Result:
            ours, theirs = (tuple(Run(round(seconds, 5)) for seconds in found[side][kind]) for side in ("int8", "bf16"))
            against = "the same model in BF16, the same engine and settings"
            return Result(name, what, against, bars, ours, theirs, f"every request got all of its tokens; {checked}")

        return [
            result(
                self.overall,
                f"{self.what} in INT8 in a vLLM server: 32 requests at once, 128 tokens in, 64 out",
                "overall",
                OVERALL_BARS,
                "the two servers were up at once and loaded by turns",
            ),
            result(
                self.decode,
                f"{self.what} in INT8 in a vLLM engine: a step of decode, 32 requests at once",
                "decode",
                DECODE_BARS,
                "an engine of each by turns",
            ),
        ]


# Lab 04's own model has the layers of an 8B one. In many small layers less of a step is matrix products.
WIDE = Serving("serve", "serve-decode", "0.4B, two layers as wide as an 8B's,", SPEED)
DEEP = Serving("serve-deep", "serve-deep-decode", "0.4B, 24 narrow layers,", "llama-0.4b")
