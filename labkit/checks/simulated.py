"""Of numerics for 4 bits and of simulated schemes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from labkit.checks.judging import Check, invariant

if TYPE_CHECKING:
    import torch

    from labkit.zeroquant import Scored

RISE_TOLERANCE = 1e-4  # relative; float32 has seven digits


def never_grows(values: Sequence[float], looked_at: str) -> Check:
    """Each value is at most the one before it, but for rounding."""
    risen = [i for i, (a, b) in enumerate(itertools.pairwise(values), start=1) if not b <= a * (1 + RISE_TOLERANCE)]
    return invariant(
        bool(values) and not risen,
        looked_at,
        (f"it goes from {values[0]:.3g} to {values[-1]:.3g}" if values else "there is nothing")
        + (f", but rises at place {risen[0]}" if risen else ""),
        "look for NaN in the matrix, or for corrections that are not of one decomposition",
    )


def bits_are_equal(ours: torch.Tensor, theirs: torch.Tensor, looked_at: str) -> Check:
    """Two tensors hold the same bits. Both of one dtype of 8 bits, and of one shape."""
    import torch

    different = int((ours.view(torch.uint8) != theirs.view(torch.uint8)).sum())
    return invariant(
        different == 0,
        looked_at,
        f"all {ours.numel():,} codes are the same"
        if not different
        else f"{different:,} of {ours.numel():,} codes differ",
        "compare one code that differs bit by bit: sign, exponent, mantissa",
    )


def grid_is_whole(gptq: Sequence[Scored], rtn: Sequence[Scored], schemes: int) -> Check:
    """Each scheme was scored once by both methods, with finite figures, and 16 bits are the same in both."""
    bad = [s.scheme.variant for s in (*gptq, *rtn) if not (math.isfinite(s.perplexity) and s.perplexity >= 1)]
    names = [[s.scheme.variant for s in scored] for scored in (gptq, rtn)]
    counted = all(len(set(each)) == len(each) == schemes for each in names) and names[0] == names[1]
    plain = [s.perplexity for s in (*gptq, *rtn) if s.scheme.weights is None]
    same = len(plain) == 2 and plain[0] == plain[1]
    problems = [
        *([] if counted else [f"{len(names[0])} and {len(names[1])} schemes instead of {schemes} each"]),
        *(f"no perplexity for {variant}" for variant in bad),
        *([] if same else ["16 bits differ between the two runs, so a scheme was not taken off again"]),
    ]
    return invariant(
        not problems,
        "the grid",
        "; ".join(problems) or f"{schemes} schemes by both methods, and the model is the same at the end of both",
        "run the cell of the grid again; a layer that gives NaN is named in the error",
    )


def is_repeated(first: float, again: float, looked_at: str) -> Check:
    """The same scheme scored twice scores the same, to the last bit."""
    return invariant(
        first == again,
        looked_at,
        f"{again:.6f} both times" if first == again else f"{first:.6f} at first and {again:.6f} now",
        "something of the scheme before it was left on the model: load the model again",
    )
