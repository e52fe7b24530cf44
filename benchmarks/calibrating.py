"""Calibration rows out of a local file, the second time: labkit's own store against the cache of `datasets.map`."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import OFFLINE, SIDES, interleaved, timed
from benchmarks.quantizing import make_model
from benchmarks.results import Bar, Result, Run
from labkit.errors import DataError

NAME = "rows"
ROWS, TOKENS = 512, 2048
LINES = 1000  # in the file: more than are taken
DEADLINE_SECONDS = 300.0
BARS = (Bar("wall_seconds", 0.2), Bar("peak_bytes"))


def run(scratch: Path, pairs: int | None) -> Result:
    """Measures the pairs after one run of each that fills its cache; DataError unless both end with the same amount."""
    base, _ = make_model("llama-11m", scratch)
    data, answer = scratch / "data" / "calibration.jsonl", scratch / "answer.json"
    write_chats(data)

    def side(script: str, cache: Path) -> Callable[[int], Run]:
        def measured(number: int) -> Run:
            words = map(str, (base, data, cache, answer))
            command = [sys.executable, str(SIDES / f"{script}_rows.py"), *words, str(ROWS), str(TOKENS)]
            log = scratch / f"{script}-{number}.log"
            done = timed(command, log, deadline_seconds=DEADLINE_SECONDS, env=OFFLINE, cwd=scratch)
            found = json.loads(answer.read_text(encoding="utf-8"))
            if found != [ROWS, ROWS * TOKENS]:
                raise DataError(f"{script} made {found[0]} rows of {found[1]:,} tokens", fix=f"look at {log}")
            return done

        return measured

    ours, theirs = side("labkit", scratch / "workspace"), side("bare", scratch / "cache")
    first = [ours(-1), theirs(-1)]
    our_runs, their_runs = interleaved(ours, theirs, pairs)
    return Result(
        name=NAME,
        what=f"Calibration set of {ROWS} rows of {TOKENS:,} tokens from JSONL, the second time",
        against="`load_dataset` and `datasets.map` with the tokenizer, as llm-compressor's examples do it, cached too",
        bars=BARS,
        ours=tuple(our_runs),
        theirs=tuple(their_runs),
        checked=f"both end with a `datasets.Dataset` of {ROWS} rows and {ROWS * TOKENS:,} tokens; the first time, with "
        f"nothing cached, took {first[0].wall_seconds:.1f} s and {first[1].wall_seconds:.1f} s",
    )


def write_chats(path: Path) -> None:
    """Chats of two turns, each longer than a row, of words from a fixed seed."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(3000)]
    path.parent.mkdir()
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(LINES):
            user, assistant = (" ".join(rng.choices(words, k=TOKENS // 2)) for _ in range(2))
            turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
            file.write(json.dumps({"messages": turns}) + "\n")
