"""Recovery, its interval and its verdicts: known values, simulated coverage, and what may not be compared."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from labkit.compare import compare, compare_evaluations, mcnemar
from labkit.errors import UsageError
from labkit.evaluation import Evaluation, Request, Sample
from labkit.evaluation.request import save_evaluation, standard_error
from labkit.profiles import Task


def pairs(both: int, lost: int, gained: int, neither: int) -> tuple[list[float], list[float]]:
    """Paired 0/1 scores with the given four cells."""
    baseline = [1.0] * (both + lost) + [0.0] * (gained + neither)
    candidate = [1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither
    return baseline, candidate


def test_mcnemars_exact_test_gives_the_binomial_probabilities():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 * 0.5**5)
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)  # both tails of Binomial(10, 1/2)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    assert mcnemar(86, 150) == pytest.approx(3.716e-5, rel=2e-3)  # Agresti, Categorical Data Analysis, table 10.1


def test_a_candidate_that_answers_as_well_has_recovered():
    found = compare(*pairs(465, 5, 5, 25))
    assert (found.ratio, found.difference, found.lost, found.gained, found.n) == (1.0, 0.0, 5, 5, 500)
    assert 0.95 < found.ci_low < 1 < found.ci_high
    assert found.verdict == "recovered"
    assert found.p_value == 1.0
    assert found.sentence().startswith("Recovered: recovery 100.0%")


def test_a_candidate_that_collapsed_has_lost():
    found = compare(*pairs(1, 469, 0, 30))
    assert found.ratio == pytest.approx(1 / 470)
    assert found.ci_high < 0.02
    assert found.verdict == "lost"
    assert "below 95% of the baseline" in found.sentence()


def test_few_samples_cannot_tell_and_say_how_many_would_do():
    found = compare(*pairs(17, 2, 0, 1))
    assert found.ci_low < 0.95 < found.ci_high
    assert found.verdict == "cannot tell"
    assert found.needed is not None
    assert found.needed > 20
    assert "Cannot tell with 20 samples" in found.sentence()
    assert "would decide if this is the truth" in found.sentence()


def test_twenty_equal_answers_prove_nothing():
    found = compare(*pairs(19, 0, 0, 1))
    assert found.ratio == 1.0
    assert found.ci_low < 0.95
    assert found.verdict == "cannot tell"


def test_a_baseline_of_zero_has_nothing_to_recover():
    found = compare([0.0] * 20, [0.0] * 19 + [1.0])
    assert np.isnan(found.ratio)
    assert found.verdict == "cannot tell"
    assert found.needed is None
    assert "nothing to recover" in found.sentence()


def test_the_same_seed_gives_the_same_interval_and_order_of_rows_does_not_matter():
    baseline, candidate = pairs(80, 6, 3, 11)
    assert compare(baseline, candidate, seed=3) == compare(baseline, candidate, seed=3)
    assert compare(baseline, candidate, seed=3) == compare(baseline[::-1], candidate[::-1], seed=3)


def test_the_interval_covers_the_true_recovery_about_95_times_in_100():
    rng = np.random.default_rng(7)
    cells = np.array([0.80, 0.06, 0.03, 0.11])  # both right, lost, gained, neither
    truth = (cells[0] + cells[2]) / (cells[0] + cells[1])
    runs = 400
    hits = 0
    for _ in range(runs):
        found = compare(*pairs(*rng.multinomial(250, cells)))
        hits += found.ci_low <= truth <= found.ci_high
    assert 0.92 <= hits / runs <= 0.985


def test_the_interval_of_perplexities_covers_the_true_ratio_about_95_times_in_100():
    rng = np.random.default_rng(8)
    runs = 300
    hits = 0
    for _ in range(runs):
        baseline = rng.normal(-2.0, 0.5, size=60)
        found = compare(baseline, baseline - rng.normal(0.03, 0.05, size=60), kind="perplexity")
        hits += found.ci_low <= np.exp(-0.03) <= found.ci_high
    assert 0.90 <= hits / runs <= 0.98


def test_pairing_makes_the_interval_narrower_than_two_separate_samples_would():
    rng = np.random.default_rng(1)
    baseline, candidate = (np.array(scores) for scores in pairs(180, 5, 5, 60))
    paired = compare(baseline, candidate)
    shuffled = compare(baseline, rng.permutation(candidate))
    assert paired.ratio == shuffled.ratio
    assert paired.ci_high - paired.ci_low < 0.5 * (shuffled.ci_high - shuffled.ci_low)


def test_the_needed_number_of_samples_decides_in_about_80_of_100_runs():
    rng = np.random.default_rng(9)
    cells = np.array([0.90, 0.03, 0.02, 0.05])
    needed = compare(*pairs(*(np.round(cells * 10_000).astype(int)))).needed
    assert needed is not None
    verdicts = [compare(*pairs(*rng.multinomial(needed, cells))).verdict for _ in range(200)]
    assert 0.70 <= verdicts.count("recovered") / 200 <= 0.92
    assert verdicts.count("lost") == 0


def test_for_equal_accuracies_the_needed_number_is_the_formula_of_the_docstring():
    found = compare(*pairs(9000, 250, 250, 500))
    p, psi, m = 0.925, 0.05, 0.05
    formula = (1.95996 + 0.84162) ** 2 * ((1 - m) * psi + m**2 * p * (1 - p)) / (m * p) ** 2
    assert found.needed == pytest.approx(formula, rel=0.03)


def test_perplexities_are_compared_by_log_likelihood_per_word_weighted_by_words():
    words = [10.0, 30.0]
    found = compare([-1.0, -2.0], [-1.1, -2.1], weights=words, kind="perplexity")
    assert found.baseline == pytest.approx(np.exp((10 + 60) / 40))
    assert found.candidate == pytest.approx(np.exp((11 + 63) / 40))
    assert found.ratio == pytest.approx(np.exp(-0.1))
    assert found.difference == pytest.approx(found.candidate - found.baseline)
    assert (found.lost, found.gained, found.p_value) == (2, 0, None)


@pytest.mark.parametrize(
    ("baseline", "candidate", "margin", "told"),
    [
        ([1.0, 0.0], [1.0], 0.05, "shapes"),
        ([1.0], [1.0], 0.05, "1 samples"),
        ([1.0, 0.0], [1.0, 1.0], 0.0, "margin is 0.0"),
        ([1.0, 0.0], [1.0, float("nan")], 0.05, "not a number"),
        ([1.0, 0.0], [1.0, 1.5], 0.05, "not a number in its range"),
    ],
)
def test_scores_that_cannot_be_pairs_are_refused(baseline, candidate, margin, told):
    with pytest.raises(UsageError, match=told):
        compare(baseline, candidate, margin=margin)


def evaluation(folder: Path, variant: str, scores: list[float], **settings: object) -> Evaluation:
    """An evaluation on disk, as `evaluate` leaves one."""
    samples = [Sample(i, score, 1.0, str(i), "t", f"prompt {i}") for i, score in enumerate(scores)]
    made = Evaluation(
        request=Request(variant, folder / variant, Task("problems", "accuracy", "exact_match")),
        value=sum(scores) / len(scores),
        stderr=standard_error(samples, "accuracy"),
        n=len(scores),
        samples=folder / variant / "problems.jsonl",
        settings={"limit": None, "chat_template": "abc", **settings},
        metrics={},
        versions={"vllm": "0.32.0"},
        wall_seconds=1.0,
    )
    save_evaluation(made, samples)
    return made


def test_two_evaluations_of_the_same_rows_are_compared_by_their_samples(tmp_path):
    baseline, candidate = pairs(80, 6, 3, 11)
    found = compare_evaluations(evaluation(tmp_path, "bf16", baseline), evaluation(tmp_path, "int8", candidate))
    assert found == compare(baseline, candidate)


def test_evaluations_with_other_settings_are_refused_unless_the_difference_is_named(tmp_path):
    first = evaluation(tmp_path, "bf16", [1.0, 0.0, 1.0])
    second = evaluation(tmp_path, "int8", [1.0, 0.0, 1.0], chat_template="none")
    with pytest.raises(UsageError, match="bf16 on problems and int8 on problems differ in chat_template"):
        compare_evaluations(first, second)
    assert compare_evaluations(first, second, differ={"chat_template"}).n == 3


def test_evaluations_of_other_rows_prompts_or_versions_are_refused(tmp_path):
    first = evaluation(tmp_path, "bf16", [1.0, 0.0, 1.0])
    fewer = evaluation(tmp_path, "int8", [1.0, 0.0])
    with pytest.raises(UsageError, match="scored other rows"):
        compare_evaluations(first, fewer)
    other = evaluation(tmp_path, "fp8", [1.0, 0.0, 1.0])
    save_evaluation(other, [Sample(i, 1.0, 1.0, "", "t", f"other {i}") for i in range(3)])
    with pytest.raises(UsageError, match="3 of 3 prompts differ"):
        compare_evaluations(first, other)
    newer = replace(evaluation(tmp_path, "w4", [1.0, 0.0, 1.0]), versions={"vllm": "0.33.0"})
    with pytest.raises(UsageError, match="differ in vllm"):
        compare_evaluations(first, newer)


def test_more_samples_never_widen_the_interval_of_the_same_proportions():
    widths = [(f := compare(*pairs(8 * k, k, k // 2, k))).ci_high - f.ci_low for k in (4, 40, 400)]
    assert all(wide > narrow for wide, narrow in pairwise(widths))
