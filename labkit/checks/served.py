"""Of a server: what it measured, what it holds, that it is gone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from labkit.checks.judging import Check, invariant

if TYPE_CHECKING:
    from labkit.hardware import Capability
    from labkit.serving import Alone, Load, Loaded

TOKENS_TOLERANCE = 0.01  # of tokens that fit: an engine rounds to whole blocks


def loads_are_whole(runs: Mapping[str, Mapping[Load, Sequence[Loaded]]]) -> Check:
    """Every load of every variant was measured at least once, and every rate is a number above zero."""
    bad = [
        f"{variant} at {load.concurrency} requests at once"
        for variant, loads in runs.items()
        for load, results in loads.items()
        if not results or any(not (math.isfinite(r.output_tok_per_s) and r.output_tok_per_s > 0) for r in results)
    ]
    requests = sum(load.requests * len(results) for loads in runs.values() for load, results in loads.items())
    return invariant(
        bool(runs) and not bad,
        f"the loads of {len(runs)} servers",
        f"no rate for {'; '.join(bad)}" if bad else f"{requests:,} requests were answered to their last token",
        "look at the server's log; `labkit doctor` says whether something else uses this machine",
    )


def engines_were_measured(alone: Mapping[str, Alone], requests: int) -> Check:
    """Every engine took its step with so many requests at once, and that in a time above zero."""
    bad = [v for v, engine in alone.items() if requests not in engine.step_ms or not engine.step_ms[requests].low > 0]
    return invariant(
        bool(alone) and not bad,
        f"the steps of {len(alone)} engines with {requests} requests at once",
        f"{', '.join(bad)} took none" if bad else "each was measured",
        "look at the engine's log; `labkit doctor` says whether something else uses this machine",
    )


def servers_are_gone(alive: Sequence[str]) -> Check:
    """Every server was stopped. alive: the names of those that still run."""
    return invariant(
        not alive,
        "the servers that this lab started",
        "none runs any more" if not alive else f"{', '.join(alive)} still answers",
        "call `server.stop()`, or serve in a `with` block",
    )


def tokens_as_predicted(predicted: int, found: int, what: str) -> Check:
    """The engine's cache holds as many tokens as the arithmetic says, within 1%."""
    return invariant(
        abs(predicted - found) <= TOKENS_TOLERANCE * found,
        f"the tokens that fit into {what}: predicted, and as the engine has them",
        f"{predicted:,} predicted, {found:,} in the engine's blocks",
        "compare layers, key-value heads and head size in config.json with what the engine says of its cache",
    )


def as_the_matrix_says(row: Capability, taken: bool) -> Check:
    """The engine took a scheme exactly where the capability matrix says that it runs."""
    return invariant(
        taken == (row.verdict != "no") or row.verdict == "not covered",
        f"what the engine did with {row.scheme} against the capability matrix",
        f"the matrix says {row.verdict}, and the engine {'took' if taken else 'refused'} it",
        "the installed engine is another build than the matrix knows: read the error, and tell the matrix's authors",
    )
