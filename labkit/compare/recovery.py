"""Recovery: how much of the baseline's score a candidate keeps, and whether this many samples can tell.

Both models answered the same rows, so the rows are paired: what is resampled is a row with both its scores, and
whatever makes a row hard for both cancels. At an accuracy near 0.75 an unpaired ratio of 250 rows wanders by 5%; a
paired one by what the models really disagree on.

    recovery = candidate / baseline             accuracy: mean scores
    recovery = baseline / candidate             perplexity, where less is better: exp of the mean difference per word

so that 1 is "nothing lost" for both. The verdict for a margin m (0.05: keep 95%) reads the 95% interval of the ratio:
wholly above 1 - m "recovered", wholly below "lost", else "cannot tell".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from labkit.errors import UsageError
from labkit.profiles import TaskKind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

Verdict = Literal["recovered", "lost", "cannot tell"]

MARGIN = 0.05
LEVEL = 0.95  # of every interval
POWER = 0.80  # that `needed` aims at
REPLICATES = 10_000
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
    verdict: Verdict
    baseline: float
    candidate: float
    margin: float = MARGIN
    kind: TaskKind = "accuracy"

    def sentence(self) -> str:
        """The verdict in plain words."""
        if math.isnan(self.ratio):
            return f"Cannot tell: the baseline scored 0 on these {self.n} samples, so there is nothing to recover."
        bound = f"{1 - self.margin:.0%} of the baseline"
        found = f"recovery {self.ratio:.1%} ({LEVEL:.0%} interval {self.ci_low:.1%} to {self.ci_high:.1%})"
        if self.verdict == "recovered":
            return f"Recovered: {found}, all of it above {bound}, on {self.n} samples."
        if self.verdict == "lost":
            return f"Lost: {found}, all of it below {bound}, on {self.n} samples."
        more = (
            f"about {_round(self.needed):,} would decide if this is the truth"
            if self.needed
            else "it lies so near the bound that no number of samples is likely to decide"
        )
        return f"Cannot tell with {self.n} samples: {found} contains {bound}; {more}."


def _round(number: int) -> int:
    """Two leading digits: more would claim a precision that an estimate has not."""
    step = max(1, 10 ** (len(str(number)) - 2))
    return -(-number // step) * step


def compare(
    baseline: Sequence[float],
    candidate: Sequence[float],
    *,
    margin: float = MARGIN,
    seed: int = 0,
    weights: Sequence[float] | None = None,
    kind: TaskKind = "accuracy",
) -> Recovery:
    """Recovery of paired scores, row i of both being the same row; see `Recovery`.

    baseline, candidate: [n] scores in [0, 1], or with kind="perplexity" log-likelihoods per word in nats. weights: [n],
    what each row counts (words, instructions); 1 if left out. Raises UsageError for scores that can't be pairs.
    """
    import numpy as np

    b, c = np.asarray(baseline, dtype=float), np.asarray(candidate, dtype=float)
    w = np.ones_like(b) if weights is None else np.asarray(weights, dtype=float)
    _check(b, c, w, margin, kind)
    mean_b, mean_c = float(w @ b / w.sum()), float(w @ c / w.sum())
    lost, gained = int((c < b).sum()), int((c > b).sum())
    if kind == "perplexity":
        shown_b, shown_c = math.exp(-mean_b), math.exp(-mean_c)
        ratio = shown_b / shown_c
    else:
        shown_b, shown_c = mean_b, mean_c
        ratio = mean_c / mean_b if mean_b else math.nan
    low, high = _interval(b, c, w, kind, seed) if not math.isnan(ratio) else (math.nan, math.nan)
    bound = 1 - margin
    return Recovery(
        ratio=ratio,
        ci_low=low,
        ci_high=high,
        difference=shown_c - shown_b,
        lost=lost,
        gained=gained,
        p_value=mcnemar(lost, gained) if kind == "accuracy" and _binary(b) and _binary(c) else None,
        n=len(b),
        needed=None if math.isnan(ratio) else samples_needed(b, c, w, margin, kind),
        verdict="recovered" if low > bound else "lost" if high < bound else "cannot tell",
        baseline=shown_b,
        candidate=shown_c,
        margin=margin,
        kind=kind,
    )


def _check(b: Floats, c: Floats, w: Floats, margin: float, kind: str) -> None:
    if b.ndim != 1 or b.shape != c.shape or b.shape != w.shape:
        raise UsageError(
            f"baseline, candidate and weights have shapes {b.shape}, {c.shape} and {w.shape}",
            why="the comparison is row by row",
            fix="give one score for each row of the same rows",
        )
    if len(b) < 2:
        raise UsageError(f"{len(b)} samples", why="one row has no spread", fix="compare at least two")
    if not 0 < margin < 1:
        raise UsageError(f"margin is {margin}", fix="give a share between 0 and 1, such as 0.05")
    inside = kind == "perplexity" or (min(b.min(), c.min()) >= 0 and max(b.max(), c.max()) <= 1)
    finite = all(bool((abs(x) < math.inf).all()) for x in (b, c, w))
    if not finite or not inside or w.min() < 0 or not w.sum():
        raise UsageError(
            "a score or weight is not a number in its range",
            why="accuracies lie in [0, 1], log-likelihoods and weights are finite",
            fix="look at the samples of the evaluation",
        )


def _binary(scores: Floats) -> bool:
    return bool(((scores == 0) | (scores == 1)).all())


def _table(b: Floats, c: Floats, w: Floats, kind: str) -> tuple[Floats, Floats]:
    """Different rows (baseline, candidate, weight) [r, 3] and how often each stands in the bootstrap's population [r].

    For accuracies half a row is added to each corner (1,1), (1,0), (0,1), (0,0), as Agresti and Min (Statistics in
    Medicine 24, 2005) do for paired proportions: where no pair disagrees, plain resampling has an interval of no width,
    and twenty equal answers would "prove" recovery.
    """
    import numpy as np

    rows, counts = np.unique(np.stack([b, c, w], axis=1), axis=0, return_counts=True)
    if kind == "perplexity":
        return rows, counts.astype(float)
    corners = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=float)
    corners = np.column_stack([corners, np.full(4, w.mean())])
    return np.concatenate([rows, corners]), np.concatenate([counts, np.full(4, PSEUDO)])


def _interval(b: Floats, c: Floats, w: Floats, kind: str, seed: int) -> tuple[float, float]:
    """The paired percentile bootstrap of the ratio (Efron and Tibshirani 1993, 13.3); a row is drawn with both."""
    import numpy as np

    rows, counts = _table(b, c, w, kind)
    rng, n = np.random.default_rng(seed), len(b)
    ratios = []
    block = max(1, min(REPLICATES, 20_000_000 // len(rows)))
    for start in range(0, REPLICATES, block):
        drawn = rng.multinomial(n, counts / counts.sum(), size=min(block, REPLICATES - start))  # [replicates, r]
        sum_b, sum_c, sum_w = (
            drawn @ column for column in (rows[:, 2] * rows[:, 0], rows[:, 2] * rows[:, 1], rows[:, 2])
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.exp((sum_c - sum_b) / sum_w) if kind == "perplexity" else sum_c / sum_b
        ratios.append(np.nan_to_num(ratio, nan=np.inf, posinf=np.inf))  # a draw without any right answer says nothing
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(ratios), [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)


def mcnemar(lost: int, gained: int) -> float:
    """McNemar's exact test: the two-sided probability of so uneven a split if neither model were better.

    lost, gained: discordant pairs, baseline right and candidate wrong, and the other way round. McNemar (1947), exact
    by the binomial distribution; 1.0 without discordant pairs.
    """
    from scipy.stats import binomtest

    return float(binomtest(min(lost, gained), lost + gained, 0.5).pvalue) if lost + gained else 1.0


def samples_needed(
    baseline: Floats, candidate: Floats, weights: Floats, margin: float, kind: TaskKind = "accuracy"
) -> int | None:
    """How many rows would decide with 80% power, if the scores and the disagreement seen here are the truth.

        n = (z_0.975 + z_0.80)² σ² / δ²        δ = E[d],  σ² = Var[d],  d = candidate - (1 - m) baseline,

    the sample size of a one-sample comparison with a shifted null (Julious, Statistics in Medicine 23, 2004; for 0/1
    scores σ² follows from the discordance rate ψ = P(lost) + P(gained), as in Connor, Biometrics 43, 1987:
    for equal accuracies p it is (1 - m) ψ + m² p (1 - p)). For perplexity d is the difference of log-likelihoods per
    word minus log(1 - m). Moments come from the bootstrap's table. None above ten million.
    """
    import numpy as np
    from scipy.stats import norm

    rows, counts = _table(baseline, candidate, weights, kind)
    b, c, w = rows.T
    share = counts * w / (counts @ w)
    d = c - b - math.log(1 - margin) if kind == "perplexity" else c - (1 - margin) * b
    delta = float(share @ d)
    # The variance of a weighted mean counts each row by its weight over the mean weight (the linearised ratio).
    spread = float(counts @ (w * (d - delta)) ** 2 / counts.sum() / (counts @ w / counts.sum()) ** 2)
    z = norm.ppf(0.5 + LEVEL / 2) + norm.ppf(POWER)
    if not delta or (needed := float(z**2 * spread / delta**2)) > NEEDED_AT_MOST:
        return None
    return max(2, int(np.ceil(needed)))
