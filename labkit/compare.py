"""Recovery: how much of the baseline's score a candidate keeps, and whether this many samples can tell.

Both models answered the same rows, so the rows are paired: what is resampled is a row with both its scores, and
whatever makes a row hard for both cancels. At an accuracy near 0.75 an unpaired ratio of 250 rows wanders by 5%; a
paired one by what the models really disagree on.

    recovery = candidate / baseline             accuracy: mean scores
    recovery = baseline / candidate             perplexity, where less is better: exp of the mean difference per word

so that 1 is "nothing lost" for both. The verdict reads the 95% interval of the ratio: wholly above 1 - m, m being the
margin of 0.05, "recovered", wholly below "lost", else "cannot tell".

Before an evaluation: how many samples does it take to tell a loss from noise? A loss of δ shows when the 95% interval
of the difference lies below 0. The difference of n rows is close to normal, so

    power(n) = Φ(δ √n / σ - z_0.975)        n = (z_0.975 + z_0.80)² σ² / δ²

Paired rows, of which a share ψ comes out differently: σ² = ψ - δ² (each such row counts +1 or -1). Other rows for each
model: σ² = p₁(1 - p₁) + p₂(1 - p₂), whatever they have in common. Source: Connor, Biometrics 43 (1987), for pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from labkit.errors import UsageError
from labkit.profiles import TaskKind

if TYPE_CHECKING:
    from labkit.evaluate import Evaluation

Floats = NDArray[np.float64]
Verdict = Literal["recovered", "lost", "cannot tell"]

MARGIN = 0.05  # of every verdict: keep 95%
LEVEL = 0.95  # of every interval
Z_LEVEL = NormalDist().inv_cdf(0.5 + LEVEL / 2)  # 1.96
Z_POWER = NormalDist().inv_cdf(0.80)  # for the power that `needed` aims at
REPLICATES, BLOCK = 10_000, 100  # of the bootstrap, and how many are drawn at once
PSEUDO = 0.5  # rows added to each corner of the bootstrap's table
NEEDED_AT_MOST = 10_000_000


@dataclass(frozen=True)
class Recovery:
    """A candidate against its baseline on the same rows.

    ratio: the recovery, 1 is equal. ci_low, ci_high: its paired 95% interval. difference: candidate minus baseline in
    the task's own unit. lost, gained: rows on which the candidate scored lower, higher. p_value: McNemar's exact test,
    for scores of 0 and 1 only. needed: samples that would decide with 80% power if what was seen is the truth; None if
    it lies so near the margin that no number would. Where the baseline scored nothing, ratio and interval are NaN.
    """

    ratio: float
    ci_low: float
    ci_high: float
    difference: float
    lost: int
    gained: int
    p_value: float | None
    n: int
    needed: int | None
    baseline: float
    candidate: float
    margin: float = MARGIN

    @property
    def verdict(self) -> Verdict:
        bound = 1 - self.margin
        return "recovered" if self.ci_low > bound else "lost" if self.ci_high < bound else "cannot tell"

    def sentence(self) -> str:
        """The verdict in plain words."""
        if math.isnan(self.ratio):
            return f"Cannot tell: the baseline scored 0 on these {self.n} samples, so there is nothing to recover."
        bound = f"{1 - self.margin:.0%} of the baseline"
        found = f"recovery {self.ratio:.1%} ({LEVEL:.0%} interval {self.ci_low:.1%} to {self.ci_high:.1%})"
        if self.verdict != "cannot tell":
            side = "above" if self.verdict == "recovered" else "below"
            return f"{self.verdict.capitalize()}: {found}, all of it {side} {bound}, on {self.n} samples."
        more = "it lies so near the bound that no number of samples is likely to decide"
        if self.needed:
            step = max(1, 10 ** (len(str(self.needed)) - 2))  # two leading digits: an estimate has no more
            more = f"about {-(-self.needed // step) * step:,} would decide if this is the truth"
        return f"Cannot tell with {self.n} samples: {found} contains {bound}; {more}."


def compare(
    baseline: Sequence[float],
    candidate: Sequence[float],
    *,
    seed: int = 0,
    weights: Sequence[float] | None = None,
    kind: TaskKind = "accuracy",
) -> Recovery:
    """Recovery of paired scores, row i of both being the same row; see `Recovery`.

    baseline, candidate: [n] scores in [0, 1], or with kind="perplexity" log-likelihoods per word in nats. weights: [n],
    what each row counts (words, instructions); 1 if left out. Raises UsageError for scores that can't be pairs.
    """
    b, c = np.asarray(baseline, dtype=float), np.asarray(candidate, dtype=float)
    w = np.ones_like(b) if weights is None else np.asarray(weights, dtype=float)
    _check(b, c, w, kind)
    score_b, score_c = float(np.average(b, weights=w)), float(np.average(c, weights=w))
    if kind == "perplexity":
        score_b, score_c = math.exp(-score_b), math.exp(-score_c)
        ratio = score_b / score_c
    else:
        ratio = score_c / score_b if score_b else math.nan
    lost, gained = int((c < b).sum()), int((c > b).sum())
    low, high, needed = math.nan, math.nan, None
    if not math.isnan(ratio):
        rows, counts = _table(b, c, w, kind)
        low, high = _interval(rows, counts, len(b), kind, seed)
        needed = _samples_needed(rows, counts, kind)
    binary = kind == "accuracy" and set(np.unique([b, c])) <= {0, 1}
    p_value = mcnemar(lost, gained) if binary else None
    return Recovery(ratio, low, high, score_c - score_b, lost, gained, p_value, len(b), needed, score_b, score_c)


def _check(b: Floats, c: Floats, w: Floats, kind: str) -> None:
    if b.ndim != 1 or b.shape != c.shape or b.shape != w.shape:
        what = f"baseline, candidate and weights have shapes {b.shape}, {c.shape} and {w.shape}"
        raise UsageError(what, "the comparison is row by row", "give one score for each row of the same rows")
    if len(b) < 2:
        raise UsageError(f"{len(b)} samples", why="one row has no spread", fix="compare at least two")
    inside = kind == "perplexity" or (min(b.min(), c.min()) >= 0 and max(b.max(), c.max()) <= 1)
    if not np.isfinite([b, c, w]).all() or not inside or w.min() < 0 or not w.sum():
        why = "accuracies lie in [0, 1], log-likelihoods and weights are finite"
        raise UsageError("a score or weight is not a number in its range", why, "look at the samples of the evaluation")


def _table(b: Floats, c: Floats, w: Floats, kind: str) -> tuple[Floats, Floats]:
    """Different rows (baseline, candidate, weight) [r, 3] and how often each stands in the bootstrap's population [r].

    For accuracies half a row is added to each corner (1,1), (1,0), (0,1), (0,0), as Agresti and Min (Statistics in
    Medicine 24, 2005) do for paired proportions: where no pair disagrees, plain resampling has an interval of no width,
    and twenty equal answers would "prove" recovery.
    """
    rows, counts = np.unique(np.stack([b, c, w], axis=1), axis=0, return_counts=True)
    if kind == "perplexity":
        return rows, counts.astype(float)
    corners = np.array([[x, y, w.mean()] for x, y in ((1, 1), (1, 0), (0, 1), (0, 0))])
    return np.concatenate([rows, corners]), np.concatenate([counts, np.full(4, PSEUDO)])


def _interval(rows: Floats, counts: Floats, n: int, kind: str, seed: int) -> tuple[float, float]:
    """The paired percentile bootstrap of the ratio (Efron and Tibshirani 1993, 13.3); a row is drawn with both."""
    b, c, w = rows.T
    rng, sums = np.random.default_rng(seed), []
    for _ in range(REPLICATES // BLOCK):
        drawn = rng.multinomial(n, counts / counts.sum(), size=BLOCK)  # [block, r]
        sums.append(drawn @ np.stack([w * b, w * c, w], axis=1))  # [block, r] @ [r, 3]
    sum_b, sum_c, sum_w = np.concatenate(sums).T
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.exp((sum_c - sum_b) / sum_w) if kind == "perplexity" else sum_c / sum_b
    ratios = np.nan_to_num(ratios, nan=np.inf, posinf=np.inf)  # a draw without any right answer says nothing
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
    return float(low), float(high)


def _samples_needed(rows: Floats, counts: Floats, kind: str) -> int | None:
    """How many rows would decide with 80% power, if the scores and the disagreement seen here are the truth.

        n = (z_0.975 + z_0.80)² σ² / δ²        δ = E[d],  σ² = Var[d],  d = candidate - (1 - m) baseline,

    the sample size of a one-sample comparison with a shifted null (Julious, Statistics in Medicine 23, 2004; for 0/1
    scores σ² follows from the discordance rate ψ = P(lost) + P(gained), as in Connor, Biometrics 43, 1987:
    for equal accuracies p it is (1 - m) ψ + m² p (1 - p)). For perplexity d is the difference of log-likelihoods per
    word minus log(1 - m). Moments come from the bootstrap's table. None above ten million.
    """
    b, c, w = rows.T
    share = counts * w / (counts @ w)
    d = c - b - math.log(1 - MARGIN) if kind == "perplexity" else c - (1 - MARGIN) * b
    delta = float(share @ d)
    # The variance of a weighted mean counts each row by its weight over the mean weight (the linearised ratio).
    variance = float(counts @ (w * (d - delta)) ** 2 / counts.sum() / (counts @ w / counts.sum()) ** 2)
    needed = (Z_LEVEL + Z_POWER) ** 2 * variance / delta**2 if delta else math.inf
    return None if needed > NEEDED_AT_MOST else max(2, math.ceil(needed))


def mcnemar(lost: int, gained: int) -> float:
    """McNemar's exact test: the two-sided probability of so uneven a split if neither model were better.

    lost, gained: discordant pairs, baseline right and candidate wrong, and the other way round. McNemar (1947), exact
    by the binomial distribution; 1.0 without discordant pairs.
    """
    from scipy.stats import binomtest

    return float(binomtest(min(lost, gained), lost + gained, 0.5).pvalue) if lost + gained else 1.0


def compare_evaluations(
    baseline: Evaluation,
    candidate: Evaluation,
    *,
    seed: int = 0,
    differ: Set[str] = frozenset(),
    first: int | None = None,
) -> Recovery:
    """Recovery of one evaluation against another, from their samples.

    first: compare the first rows only, as if `limit` had been that. differ: settings that differ on purpose
    (`{"chat_template", "add_bos"}`); with them prompts may differ.
    Raises UsageError when the two were asked different things: another task, metric, setting, row or prompt.
    """
    from labkit.evaluate import load_samples

    task, both = baseline.request.task, (baseline, candidate)
    names = " and ".join(f"{each.request.variant} on {each.request.task.name}" for each in both)
    fields = [{name: getattr(each.request.task, name) for name in ("name", "metric", "filter")} for each in both]
    asked = (fields, [each.settings for each in both], [each.versions for each in both])
    unequal = [
        name
        for mine, theirs in asked
        for name in sorted(mine.keys() | theirs.keys())
        if mine.get(name) != theirs.get(name) and name not in differ
    ]
    if unequal:
        why = "the score would show that difference, not the quantization"
        raise UsageError(f"{names} differ in {', '.join(unequal)}", why, "evaluate both in the same way, in one call")
    before, after = load_samples(baseline.samples), load_samples(candidate.samples)
    if [(s.doc_id, s.weight) for s in before] != [(s.doc_id, s.weight) for s in after]:
        what = f"{names} scored other rows ({len(before)} and {len(after)})"
        raise UsageError(what, "the comparison is row by row", "evaluate both with one limit and the same data")
    changed = [s.doc_id for s, t in zip(before, after, strict=True) if s.prompt_sha256 != t.prompt_sha256]
    if changed and not differ:
        what = f"{len(changed)} of {len(before)} prompts differ, the first in row {changed[0]}"
        fix = "give both checkpoints the baseline's tokenizer and chat template"
        raise UsageError(what, "the two models were asked different questions", fix)
    scores = [[sample.score for sample in samples[:first]] for samples in (before, after)]
    return compare(*scores, seed=seed, weights=[s.weight for s in before[:first]], kind=task.kind)


def detection_power(samples: int, accuracy: float, loss: float, differing: float | None) -> float:
    """The chance, 0 to 1, that an evaluation of so many samples shows the loss; see the module's docstring.

    accuracy: the baseline's; differing: the share of paired rows that differ, None for other rows for each model.
    Raises UsageError for what can't be: a loss beyond the accuracy, or more lost rows than differing ones.
    """
    sigma = _sigma(accuracy, loss, differing)  # 0 if every row is lost, and nothing is left to chance
    return NormalDist().cdf(loss * math.sqrt(samples) / sigma - Z_LEVEL) if sigma else 1.0


def samples_to_detect(accuracy: float, loss: float, differing: float | None) -> int:
    """How many samples show the loss in 80% of all evaluations; arguments and errors as for `detection_power`."""
    return max(2, math.ceil(((Z_LEVEL + Z_POWER) * _sigma(accuracy, loss, differing) / loss) ** 2))


def _sigma(accuracy: float, loss: float, differing: float | None) -> float:
    """σ of one row's difference."""
    if not 0 < loss <= accuracy <= 1:
        raise UsageError(f"a loss of {loss:g} from an accuracy of {accuracy:g}", fix="give 0 < loss <= accuracy <= 1")
    if differing is None:
        left = accuracy - loss
        return math.sqrt(accuracy * (1 - accuracy) + left * (1 - left))
    if not loss <= differing <= 1:
        what = f"{differing:g} of the rows differ, and {loss:g} are lost"
        raise UsageError(what, "every lost row is one that differs", "give loss <= differing <= 1")
    return math.sqrt(differing - loss**2)
