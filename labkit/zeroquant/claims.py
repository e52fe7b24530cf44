"""The paper's claims, each as a pair of schemes that differ in one thing, judged on the same rows.

A claim says that a candidate predicts better than another scheme, or no worse: a perplexity at most 1% higher. Both
scored the same rows, so the rows are paired, and the 95% interval of the ratio of perplexities decides:

    better      wholly above 1: holds here; wholly below: fails here
    no worse    wholly above 0.99: holds here; wholly below: fails here

else these rows can't tell. The interval knows which rows were scored, and not the luck of which rows GPTQ was given
to calibrate on: so a claim about weights is worth judging for both ways to round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from labkit.compare import Recovery, compare
from labkit.errors import UsageError
from labkit.zeroquant.published import MEANS, VARIANTS
from labkit.zeroquant.scored import Scored, pooled

Kind = Literal["better", "no worse"]
Verdict = Literal["holds here", "fails here", "can't tell here"]

MARGIN = 0.01


@dataclass(frozen=True)
class Claim:
    """says: in words. candidate is better, or no worse, than `other`: both are variants of the grid."""

    says: str
    other: str
    candidate: str
    kind: Kind = "better"

    @property
    def bound(self) -> float:
        """What the ratio of perplexities, other over candidate, must be above."""
        return 1.0 if self.kind == "better" else 1.0 - MARGIN

    @property
    def published(self) -> tuple[int, int] | None:
        """On how many of the published models it holds, and of how many; None if the paper's rows are not legible."""
        if not {self.other, self.candidate} <= set(VARIANTS):
            return None
        first, second = VARIANTS.index(self.other), VARIANTS.index(self.candidate)
        holds = [row[first] / row[second] > self.bound for row in MEANS.values()]
        return sum(holds), len(holds)


CLAIMS = (
    Claim("8-bit weights: FP8 activations beat INT8", "w8a8-int-int", "w8a8-int-fp"),
    Claim("4-bit weights: FP8 activations beat INT8", "w4a8-int-int", "w4a8-int-fp"),
    Claim("FP8 weights are no worse than INT8", "w8a8-int-fp", "w8a8-fp-fp", "no worse"),
    Claim("FP4 weights are no worse than INT4", "w4a8-int-fp", "w4a8-fp-fp", "no worse"),
    Claim("FP4 weights beat INT4", "w4a8-int-fp", "w4a8-fp-fp"),
    Claim("LoRC helps INT4", "w4a8-int-fp", "w4a8-int-fp-lorc"),
    Claim("LoRC helps FP4", "w4a8-fp-fp", "w4a8-fp-fp-lorc"),
    Claim("M1 is no worse than real scales", "w4a8-fp-fp", "w4a8-fp-fp-m1", "no worse"),
    Claim("M2 is no worse than real scales", "w4a8-fp-fp", "w4a8-fp-fp-m2", "no worse"),
    Claim("M2 beats M1", "w4a8-fp-fp-m1", "w4a8-fp-fp-m2"),
    Claim("with LoRC, M2 is no worse than real scales", "w4a8-fp-fp-lorc", "w4a8-fp-fp-m2-lorc", "no worse"),
)


@dataclass(frozen=True)
class Judged:
    """A claim on one model. ratio: perplexity of `other` over the candidate's, with its paired 95% interval."""

    claim: Claim
    ratio: float
    ci_low: float
    ci_high: float
    rows: int

    @property
    def verdict(self) -> Verdict:
        if self.ci_low > self.claim.bound:
            return "holds here"
        return "fails here" if self.ci_high < self.claim.bound else "can't tell here"

    @property
    def in_words(self) -> str:
        """The verdict; of a "no worse" that holds, also whether it is worse all the same."""
        worse = self.claim.kind == "no worse" and self.verdict == "holds here" and self.ci_high < 1
        return f"{self.verdict}, worse by less than {MARGIN:.0%}" if worse else self.verdict

    @property
    def agrees(self) -> bool | None:
        """Whether most published models say the same; None if these rows can't tell or the paper's are not legible."""
        if self.claim.published is None or self.verdict == "can't tell here":
            return None
        holds, of = self.claim.published
        return (self.verdict == "holds here") == (2 * holds > of)


def judge(claim: Claim, grid: Sequence[Scored], seed: int = 0) -> Judged:
    """A claim on what one method of rounding gave. Raises UsageError if a scheme of it was not scored just once."""
    pair = []
    for variant in (claim.other, claim.candidate):
        found = [scored for scored in grid if scored.scheme.variant == variant]
        if len(found) != 1:
            raise UsageError(
                f"{variant} was scored {len(found)} times", fix="give the rows of one method, each scheme once"
            )
        pair.append(found[0])
    other, candidate = pair
    ratio = _ratio(other, candidate, seed)
    return Judged(claim, ratio.ratio, ratio.ci_low, ratio.ci_high, other.rows)


def over_baseline(scored: Scored, baseline: Scored, seed: int = 0) -> tuple[float, float, float]:
    """The perplexity of a scheme over the baseline's on all rows, with its paired 95% interval: (ratio, low, high)."""
    found = _ratio(scored, baseline, seed)
    return found.ratio, found.ci_low, found.ci_high


def _ratio(other: Scored, candidate: Scored, seed: int) -> Recovery:
    """The perplexity of `other` over the candidate's. Raises UsageError if they did not score the same rows."""
    first, second = pooled(other), pooled(candidate)
    if first.tokens != second.tokens:
        raise UsageError(
            f"{other.scheme.variant} and {candidate.scheme.variant} were scored on other rows",
            fix="score both on the same",
        )
    return compare(first.scores, second.scores, weights=first.tokens, kind="perplexity", seed=seed)
