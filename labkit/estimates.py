"""Standard errors of what is measured on rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z_95 = 1.96  # standard errors to each side of a 95% interval


def ratio_stderr(scores: Sequence[float], weights: Sequence[float]) -> float:
    """The standard error of Σ s·w / Σ w over rows (Cochran, Sampling Techniques, 6.3); of a mean if weights are equal.

    scores, weights: [n]. 0 for fewer than two rows.
    """
    n, total = len(scores), sum(weights)
    if n < 2 or not total:
        return 0.0
    mean = sum(s * w for s, w in zip(scores, weights, strict=True)) / total
    spread = sum((w * (s - mean)) ** 2 for s, w in zip(scores, weights, strict=True))
    return math.sqrt(spread * n / (n - 1)) / total
