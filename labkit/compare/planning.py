"""Before an evaluation: how many samples does it take to tell a loss from noise?

A loss of δ shows when the 95% interval of the difference lies below 0. The difference of n rows is close to normal, so

    power(n) = Φ(δ √n / σ - z_0.975)        n = (z_0.975 + z_0.80)² σ² / δ²

Paired rows, of which a share ψ comes out differently: σ² = ψ - δ² (each such row counts +1 or -1). Other rows for each
model: σ² = p₁(1 - p₁) + p₂(1 - p₂), whatever they have in common. Source: Connor, Biometrics 43 (1987), for pairs.
"""

from __future__ import annotations

import math

from labkit.compare.recovery import LEVEL, POWER
from labkit.errors import UsageError


def spread(accuracy: float, loss: float, differing: float | None) -> float:
    """σ of one row's difference. accuracy: the baseline's; differing: the share of paired rows that differ, or None.

    Raises UsageError for what can't be: a loss beyond the accuracy, or more lost rows than differing ones.
    """
    if not 0 < loss <= accuracy <= 1:
        raise UsageError(f"a loss of {loss:g} from an accuracy of {accuracy:g}", fix="give 0 < loss <= accuracy <= 1")
    if differing is None:
        left = accuracy - loss
        return math.sqrt(accuracy * (1 - accuracy) + left * (1 - left))
    if not loss <= differing <= 1:
        raise UsageError(
            f"{differing:g} of the rows differ, and {loss:g} are lost",
            why="every lost row is one that differs",
            fix="give loss <= differing <= 1",
        )
    return math.sqrt(differing - loss**2)


def detection_power(samples: int, accuracy: float, loss: float, differing: float | None) -> float:
    """The chance, 0 to 1, that an evaluation of so many samples shows the loss; see the module's docstring."""
    from scipy.stats import norm

    sigma = spread(accuracy, loss, differing)
    if not sigma:  # every row is lost: nothing is left to chance
        return 1.0
    return float(norm.cdf(loss * math.sqrt(samples) / sigma - norm.ppf(0.5 + LEVEL / 2)))


def samples_to_detect(accuracy: float, loss: float, differing: float | None) -> int:
    """How many samples show the loss in 80% of all evaluations."""
    from scipy.stats import norm

    z = norm.ppf(0.5 + LEVEL / 2) + norm.ppf(POWER)
    return max(2, math.ceil((z * spread(accuracy, loss, differing) / loss) ** 2))
