"""The paper's claims, each as a pair of schemes that differ in one thing, judged on the same rows.

A claim says that the second scheme of a pair predicts better than the first. Both scored the same rows, so the rows are
paired and the 95% interval of the ratio of perplexities decides: wholly above 1 the claim holds here, wholly below it
fails here, else these rows can't tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from labkit.compare import compare
from labkit.errors import UsageError
from labkit.zeroquant.scored import Scored, pooled

Verdict = Literal["holds here", "fails here", "can't tell here"]


@dataclass(frozen=True)
class Claim:
    """says: in words. worse, better: variants, the second of which the paper finds no worse, or better."""

    says: str
    worse: str
    better: str


CLAIMS = (
    Claim("FP8 activations beat INT8 ones (8-bit weights)", "w8a8-int-int", "w8a8-int-fp"),
    Claim("FP8 activations beat INT8 ones (4-bit weights)", "w4a8-int-int", "w4a8-int-fp"),
    Claim("FP4 weights beat INT4 ones", "w4a8-int-fp", "w4a8-fp-fp"),
    Claim("LoRC helps INT4 weights", "w4a8-int-fp", "w4a8-int-fp-lorc"),
    Claim("LoRC helps FP4 weights", "w4a8-fp-fp", "w4a8-fp-fp-lorc"),
    Claim("M2 loses less than M1", "w4a8-fp-fp-m1", "w4a8-fp-fp-m2"),
    Claim("LoRC makes up for M2", "w4a8-fp-fp-m2", "w4a8-fp-fp-m2-lorc"),
)


@dataclass(frozen=True)
class Judged:
    """A claim on one model. ratio: perplexity of `worse` over that of `better`, with its paired 95% interval."""

    claim: Claim
    ratio: float
    ci_low: float
    ci_high: float
    rows: int

    @property
    def verdict(self) -> Verdict:
        if self.ci_low > 1:
            return "holds here"
        return "fails here" if self.ci_high < 1 else "can't tell here"


def judge(claim: Claim, grid: Sequence[Scored], seed: int = 0) -> Judged:
    """A claim on what one method of rounding gave. Raises UsageError if a scheme of it was not scored just once."""
    pair = []
    for variant in (claim.worse, claim.better):
        found = [scored for scored in grid if scored.scheme.variant == variant]
        if len(found) != 1:
            raise UsageError(
                f"{variant} was scored {len(found)} times", fix="give the rows of one method, each scheme once"
            )
        pair.append(pooled(found[0]))
    worse, better = pair
    if worse.tokens != better.tokens:
        raise UsageError(f"{claim.worse} and {claim.better} were scored on other rows", fix="score both on the same")
    found_ratio = compare(worse.scores, better.scores, weights=worse.tokens, kind="perplexity", seed=seed)
    return Judged(claim, found_ratio.ratio, found_ratio.ci_low, found_ratio.ci_high, len(worse.scores))
