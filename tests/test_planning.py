"""How many samples: the formulas against evaluations drawn by chance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from labkit.compare import detection_power, samples_to_detect
from labkit.errors import UsageError

DRAWS = 4000


def seen(differences: np.ndarray) -> float:
    """Share of evaluations [draws, n] whose 95% interval of the mean difference lies below zero."""
    n = differences.shape[1]
    high = differences.mean(1) + 1.96 * differences.std(1) / math.sqrt(n)
    return float((high < 0).mean())


@pytest.mark.parametrize(("accuracy", "loss", "differing", "n"), [(0.75, 0.03, 0.08, 400), (0.9, 0.01, 0.03, 1500)])
def test_paired_power_is_that_of_drawn_evaluations(accuracy: float, loss: float, differing: float, n: int) -> None:
    lost, gained = (differing + loss) / 2, (differing - loss) / 2
    drawn = np.random.default_rng(0).choice([-1, 1, 0], p=[lost, gained, 1 - differing], size=(DRAWS, n))
    assert detection_power(n, accuracy, loss, differing) == pytest.approx(seen(drawn), abs=0.03)


def test_unpaired_power_is_that_of_drawn_evaluations() -> None:
    rng, n = np.random.default_rng(0), 900
    scores = [(rng.random((DRAWS, n)) < p).astype(float) for p in (0.75, 0.70)]
    spread = np.sqrt(sum(s.var(1) for s in scores) / n)
    share = float((scores[1].mean(1) - scores[0].mean(1) + 1.96 * spread < 0).mean())
    assert detection_power(n, 0.75, 0.05, None) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("differing", [None, 0.05])
def test_the_samples_that_are_needed_have_the_power_that_was_asked_for(differing: float | None) -> None:
    n = samples_to_detect(0.8, 0.02, differing)
    assert detection_power(n, 0.8, 0.02, differing) == pytest.approx(0.8, abs=0.005)
    assert samples_to_detect(0.8, 0.01, differing) > 3.5 * n, "half the loss takes about four times the samples"


def test_pairing_saves_samples_and_a_loss_of_every_row_takes_next_to_none() -> None:
    assert samples_to_detect(0.75, 0.01, 0.05) < samples_to_detect(0.75, 0.01, None) / 5
    assert detection_power(2, 1.0, 1.0, 1.0) == 1.0
    assert samples_to_detect(1.0, 1.0, 1.0) == 2


@pytest.mark.parametrize(
    ("accuracy", "loss", "differing", "told"),
    [(0.5, 0.6, 0.6, "a loss of 0.6"), (0.5, 0.0, 0.1, "a loss of 0"), (0.5, 0.1, 0.05, "every lost row")],
)
def test_what_cannot_be_is_refused(accuracy: float, loss: float, differing: float, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        detection_power(100, accuracy, loss, differing)
