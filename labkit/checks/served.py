"""Of a server: what it measured, what it holds, that it is gone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from labkit.checks.judging import Check, expectation, invariant

if TYPE_CHECKING:
    from labkit.hardware import Capability
    from labkit.serving import Load, Loaded, Repeated

TOKENS_TOLERANCE = 0.01  # of tokens that fit: an engine rounds to whole blocks
SAVING_TOLERANCE = 0.25  # of bytes saved in a process: what one engine compiles and another does not is in it


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


def servers_are_gone(alive: Sequence[str]) -> Check:
    """Every server was stopped. alive: the names of those that still run."""
    return invariant(
        not alive,
        "the servers that this lab started",
        "none runs any more, and their memory is back" if not alive else f"{', '.join(alive)} still answers",
        "call `server.stop()`, or serve in a `with` block",
    )


def faster(speedup: Repeated, variant: str, load: str, at_least: float) -> Check:
    """A variant gives at least so many times the baseline's output. For hardware whose matrix row says so."""
    return expectation(
        speedup.median >= at_least,
        f"the output of {variant} against the baseline's, {load}",
        f"{speedup} times as many tokens a second (at least {at_least:g} are expected here)",
        "measure again on an idle machine: what else runs takes from the faster side first",
    )


def slower(speedup: Repeated, variant: str, load: str) -> Check:
    """A variant gives less output than the baseline. For hardware that only emulates its scheme."""
    return expectation(
        speedup.median < 1,
        f"the output of {variant} against the baseline's, {load}",
        f"{speedup} times as many tokens a second",
        "this machine has kernels for the scheme that the capability matrix does not know: tell its authors",
    )


def tokens_as_predicted(predicted: int, found: int, what: str) -> Check:
    """The engine's cache holds as many tokens as the arithmetic says, within 1%."""
    return invariant(
        abs(predicted - found) <= TOKENS_TOLERANCE * found,
        f"the tokens that fit into {what}: predicted, and as the engine has them",
        f"{predicted:,} predicted, {found:,} in the engine's blocks",
        "compare layers, key-value heads and head size in config.json with what the engine says of its cache",
    )


def saving_as_predicted(saved: int, predicted: float, variant: str) -> Check:
    """An engine needed less memory for a variant than for the baseline, by what the arithmetic says, within 25%."""
    return expectation(
        abs(saved - predicted) <= SAVING_TOLERANCE * predicted,
        f"what the engine took less for {variant} than for the baseline",
        f"{saved / 1e6:,.0f} MB, and {predicted / 1e6:,.0f} were promised",
        "look at what this engine unpacks: its log names the kernel of each scheme",
    )


def as_the_matrix_says(row: Capability, taken: bool) -> Check:
    """The engine took a scheme exactly where the capability matrix says that it runs."""
    return invariant(
        taken == (row.verdict != "no"),
        f"what the engine did with {row.scheme} against the capability matrix",
        f"the matrix says {row.verdict}, and the engine {'took' if taken else 'refused'} it",
        "the installed engine is another build than the matrix knows: read the error, and tell the matrix's authors",
    )
