"""Recovery, its interval, its verdicts and its power: known values, simulated coverage, what may not be compared."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labkit.compare import compare, compare_evaluations, detection_power, mcnemar, samples_to_detect
from labkit.errors import UsageError
from labkit.evaluate import Evaluation, Request, Sample, save_evaluation
from labkit.profiles import Task


def pairs(both: int, lost: int, gained: int, neither: int) -> tuple[list[float], list[float]]:
    """Paired 0/1 scores with the given four cells."""
    baseline = [1.0] * (both + lost) + [0.0] * (gained + neither)
    candidate = [1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither
    return baseline, candidate


def test_mcnemars_exact_test_gives_the_binomial_probabilities() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 * 0.5**5)
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)  # both tails of Binomial(10, 1/2)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    assert mcnemar(86, 150) == pytest.approx(3.716e-5, rel=2e-3)  # Agresti, Categorical Data Analysis, table 10.1


def test_the_verdict_says_what_the_interval_says_and_how_many_samples_would_do() -> None:
    equal = compare(*pairs(465, 5, 5, 25))
    assert (equal.ratio, equal.difference, equal.lost, equal.gained, equal.n) == (1.0, 0.0, 5, 5, 500)
    assert 0.95 < equal.ci_low < 1 < equal.ci_high
    assert (equal.verdict, equal.p_value) == ("recovered", 1.0)
    assert equal.sentence().startswith("Recovered: recovery 100.0%")
    collapsed = compare(*pairs(1, 469, 0, 30))
    assert collapsed.ratio == pytest.approx(1 / 470)
    assert collapsed.ci_high < 0.02
    assert collapsed.verdict == "lost"
    assert "below 95% of the baseline" in collapsed.sentence()
    few = compare(*pairs(17, 2, 0, 1))
    assert few.ci_low < 0.95 < few.ci_high
    assert few.verdict == "cannot tell"
    assert (few.needed or 0) > 20
    assert "Cannot tell with 20 samples" in few.sentence()
    assert "would decide if this is the truth" in few.sentence()


def test_twenty_equal_answers_prove_nothing_and_a_baseline_of_zero_has_nothing_to_recover() -> None:
    found = compare(*pairs(19, 0, 0, 1))
    assert found.ratio == 1.0
    assert found.ci_low < 0.95
    assert found.verdict == "cannot tell"
    found = compare([0.0] * 20, [0.0] * 19 + [1.0])
    assert math.isnan(found.ratio)
    assert (found.verdict, found.needed) == ("cannot tell", None)
    assert "nothing to recover" in found.sentence()


def test_the_same_seed_gives_the_same_interval_and_order_of_rows_does_not_matter() -> None:
    baseline, candidate = pairs(80, 6, 3, 11)
    assert compare(baseline, candidate, seed=3) == compare(baseline[::-1], candidate[::-1], seed=3)


def test_the_interval_covers_the_true_recovery_about_95_times_in_100() -> None:
    rng = np.random.default_rng(7)
    cells = np.array([0.80, 0.06, 0.03, 0.11])  # both right, lost, gained, neither
    truth = (cells[0] + cells[2]) / (cells[0] + cells[1])
    found = [compare(*pairs(*rng.multinomial(250, cells))) for _ in range(400)]
    assert 0.92 <= sum(f.ci_low <= truth <= f.ci_high for f in found) / 400 <= 0.985


def test_the_interval_of_perplexities_covers_the_true_ratio_about_95_times_in_100() -> None:
    rng, hits = np.random.default_rng(8), 0
    for _ in range(300):
        baseline = rng.normal(-2.0, 0.5, size=60)
        found = compare(baseline, baseline - rng.normal(0.03, 0.05, size=60), kind="perplexity")
        hits += found.ci_low <= np.exp(-0.03) <= found.ci_high
    assert 0.90 <= hits / 300 <= 0.98


def test_the_needed_number_of_samples_decides_in_about_80_of_100_runs() -> None:
    rng = np.random.default_rng(9)
    cells = np.array([0.90, 0.03, 0.02, 0.05])
    needed = compare(*pairs(*(np.round(cells * 10_000).astype(int)))).needed
    assert needed is not None
    verdicts = [compare(*pairs(*rng.multinomial(needed, cells))).verdict for _ in range(200)]
    assert 0.70 <= verdicts.count("recovered") / 200 <= 0.92
    assert verdicts.count("lost") == 0


def test_for_equal_accuracies_the_needed_number_is_the_formula_of_the_docstring() -> None:
    found = compare(*pairs(9000, 250, 250, 500))
    p, psi, m = 0.925, 0.05, 0.05
    formula = (1.95996 + 0.84162) ** 2 * ((1 - m) * psi + m**2 * p * (1 - p)) / (m * p) ** 2
    assert found.needed == pytest.approx(formula, rel=0.03)


def test_perplexities_are_compared_by_log_likelihood_per_word_weighted_by_words() -> None:
    words = [10.0, 30.0]
    found = compare([-1.0, -2.0], [-1.1, -2.1], weights=words, kind="perplexity")
    assert found.baseline == pytest.approx(np.exp((10 + 60) / 40))
    assert found.candidate == pytest.approx(np.exp((11 + 63) / 40))
    assert found.ratio == pytest.approx(np.exp(-0.1))
    assert found.difference == pytest.approx(found.candidate - found.baseline)
    assert (found.lost, found.gained, found.p_value) == (2, 0, None)


@pytest.mark.parametrize(
    ("candidate", "says"),
    [([1.0], "shapes"), ([1.0, math.nan], "not a number in its range"), ([1.0, 1.5], "not a number in its range")],
)
def test_scores_that_cannot_be_pairs_are_refused(candidate: list[float], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        compare([1.0, 0.0], candidate)
    with pytest.raises(UsageError, match="1 samples"):
        compare([1.0], [1.0])


def evaluation(folder: Path, variant: str, scores: list[float], **settings: object) -> Evaluation:
    """An evaluation on disk, as `evaluate` leaves one."""
    samples = [Sample(i, score, 1.0, str(i), "t", f"prompt {i}") for i, score in enumerate(scores)]
    made = Evaluation(
        request=Request(variant, folder / variant, Task("problems", "accuracy", "exact_match")),
        value=sum(scores) / len(scores),
        stderr=0.01,
        n=len(scores),
        samples=folder / variant / "problems.jsonl",
        settings={"limit": None, "chat_template": "abc", **settings},
        metrics={},
        versions={"vllm": "0.32.0"},
        wall_seconds=1.0,
    )
    save_evaluation(made, samples)
    return made


def test_evaluations_are_compared_by_their_samples_and_only_with_the_same_settings_rows_prompts_and_versions(
    tmp_path: Path,
) -> None:
    baseline, candidate = pairs(80, 6, 3, 11)
    first = evaluation(tmp_path, "bf16", baseline)
    assert compare_evaluations(first, evaluation(tmp_path, "int8", candidate)) == compare(baseline, candidate)
    untemplated = evaluation(tmp_path, "int8", candidate, chat_template="none")
    with pytest.raises(UsageError, match="bf16 on problems and int8 on problems differ in chat_template"):
        compare_evaluations(first, untemplated)
    assert compare_evaluations(first, untemplated, differ={"chat_template"}, first=50).n == 50
    with pytest.raises(UsageError, match=r"scored other rows \(100 and 2\)"):
        compare_evaluations(first, evaluation(tmp_path, "int8", [1.0, 0.0]))
    asked_otherwise = evaluation(tmp_path, "fp8", candidate)
    save_evaluation(asked_otherwise, [Sample(i, 1.0, 1.0, "", "t", f"other {i}") for i in range(100)])
    with pytest.raises(UsageError, match="100 of 100 prompts differ, the first in row 0"):
        compare_evaluations(first, asked_otherwise)
    newer = replace(evaluation(tmp_path, "w4", candidate), versions={"vllm": "0.33.0"})
    with pytest.raises(UsageError, match="differ in vllm"):
        compare_evaluations(first, newer)


# ---- before an evaluation

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
    ("accuracy", "loss", "differing", "says"),
    [(0.5, 0.6, 0.6, "a loss of 0.6"), (0.5, 0.0, 0.1, "a loss of 0"), (0.5, 0.1, 0.05, "every lost row")],
)
def test_what_cannot_be_is_refused(accuracy: float, loss: float, differing: float, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        detection_power(100, accuracy, loss, differing)
