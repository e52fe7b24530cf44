"""ZeroQuant-FP's grid as measured here: its scores, the paper's claims judged on them, and its published figures.

A claim is a pair of schemes that differ in one thing: a candidate predicts better than another scheme, or no worse (a
perplexity at most 1% higher). Both scored the same rows, so the paired 95% interval of the ratio of their perplexities
decides. Wholly above 1 (no worse: above 0.99) the claim holds here, wholly below it fails here, else these rows can't
tell. The interval knows which rows were scored, and not the luck of which rows GPTQ was given to calibrate on: so a
claim about weights is worth judging for both ways to round.

MEANS and LORC are published, never measured here. MEANS (Wu, Yao, He, ZeroQuant-FP, arXiv 2307.09782) is read from the
authors' slides on the ZeroQuant series, where the rows for LoRC, M1 and M2 are not legible: so none stand here. Two
footnotes of the reader: the C4 figure 7.78 of LLaMA-7b at 16 bits is as printed, though its mean of 13.37 implies 7.08;
"OPT-3b" and "OPT-7b" are as printed, and by their perplexities are OPT-1.3b and OPT-6.7b. Summaries in circulation give
LLaMA-13b's figures as LLaMA-7b's. LORC is of Yao et al., ZeroQuant-V2, arXiv 2303.08302.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from labkit.behaviour import Losses
from labkit.compare import compare
from labkit.errors import UsageError

if TYPE_CHECKING:
    from labkit.evaluate import Evaluation
    from labkit.simulation import Method, Scheme

MARGIN = 0.01
VARIANTS = ("bf16", "w8a8-int-int", "w8a8-int-fp", "w8a8-fp-fp", "w4a8-int-int", "w4a8-int-fp", "w4a8-fp-fp")
# model: the mean over WikiText-2, PTB and C4, one for each of VARIANTS
MEANS: dict[str, tuple[float, ...]] = {
    "LLaMA-3b": (11.93, 12.00, 11.96, 11.99, 12.55, 12.39, 12.45),
    "LLaMA-7b": (13.37, 13.58, 13.45, 13.46, 16.23, 16.09, 15.14),
    "LLaMA-13b": (10.31, 10.63, 10.38, 10.38, 11.48, 11.31, 11.08),
    "LLaMA-30b": (5.79, 5.90, 5.80, 5.81, 6.02, 5.94, 5.92),
    "OPT-3b": (15.44, 15.94, 15.85, 15.86, 16.41, 16.40, 16.29),
    "OPT-7b": (11.90, 12.66, 11.99, 11.99, 13.18, 12.20, 12.09),
    "OPT-13b": (11.22, 15.94, 11.27, 11.27, 16.70, 11.34, 11.34),
    "OPT-30b": (10.70, 25.76, 10.69, 10.69, 24.42, 10.73, 10.72),
}
# OPT-6.7b, only the weights rounded, a scale for each row: bits -> perplexity without LoRC, and with it
LORC: dict[int, tuple[float, float]] = {4: (12.28, 12.10), 3: (14.18, 13.00), 2: (120.56, 24.17)}


def rise(model: str, variant: str) -> float:
    """A variant's published perplexity over the same model's at 16 bits."""
    return MEANS[model][VARIANTS.index(variant)] / MEANS[model][0]


@dataclass(frozen=True)
class Scored:
    """One scheme, its weights rounded by one method. losses: by text; exact: problems answered, None if not asked."""

    scheme: Scheme
    method: Method
    bits_per_weight: float
    losses: Mapping[str, Losses]
    exact: Evaluation | None = None

    @property
    def perplexity(self) -> float:
        """The mean over the texts, as the paper's tables have it."""
        return sum(found.perplexity for found in self.losses.values()) / len(self.losses)

    @property
    def stderr(self) -> float:
        """The mean's standard error; the texts are independent of one another."""
        return math.hypot(*(found.stderr for found in self.losses.values())) / len(self.losses)

    @property
    def rows(self) -> int:
        return sum(len(found.scores) for found in self.losses.values())


@dataclass(frozen=True)
class Claim:
    """says: in words. candidate is better, or no worse, than `other`: both are variants of the grid."""

    says: str
    other: str
    candidate: str
    kind: Literal["better", "no worse"] = "better"

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
        return sum(row[first] / row[second] > self.bound for row in MEANS.values()), len(MEANS)


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

    @property
    def verdict(self) -> str:
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


def judge(claim: Claim, grid: Sequence[Scored]) -> Judged:
    """A claim on what one method of rounding gave. Raises UsageError if a scheme of it was not scored just once."""
    pair: list[Scored] = []
    for variant in (claim.other, claim.candidate):
        found = [scored for scored in grid if scored.scheme.variant == variant]
        if len(found) != 1:
            raise UsageError(f"{variant} was scored {len(found)} times", fix="give each scheme once, of one method")
        pair += found
    return Judged(claim, *over_baseline(*pair))


def over_baseline(scored: Scored, baseline: Scored) -> tuple[float, float, float]:
    """The perplexity of a scheme over the baseline's on the rows of all texts, with its paired 95% interval.

    Returns (ratio, low, high). Raises UsageError if they did not score the same rows.
    """
    both = [list(each.losses.values()) for each in (scored, baseline)]
    tokens, baseline_tokens = ([n for losses in each for n in losses.tokens] for each in both)
    if tokens != baseline_tokens:
        names = f"{scored.scheme.variant} and {baseline.scheme.variant}"
        raise UsageError(f"{names} were scored on other rows", fix="score both on the same")
    scores = [[s for losses in each for s in losses.scores] for each in both]
    found = compare(*scores, weights=tokens, kind="perplexity")
    return found.ratio, found.ci_low, found.ci_high
