"""Of what models answer: scores, recoveries, outliers, settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from labkit.checks.judging import Check, expectation, invariant

if TYPE_CHECKING:
    from labkit.compare import Recovery
    from labkit.evaluation import Evaluation

COLLAPSE = 0.20  # points of accuracy that plain INT8 loses at least on the embedded model
HOLDS = 0.02  # points of accuracy that a good scheme may lose on it


def scores_are_whole(evaluations: Sequence[Evaluation]) -> Check:
    """Every evaluation scored rows, not more than it was asked for, and its score is a number."""
    bad = [
        f"{e.request.variant} on {e.request.task.name} ({e.n} rows, score {e.value})"
        for e in evaluations
        if not (math.isfinite(e.value) and 0 < e.n <= (e.request.rows or e.n))
    ]
    rows = sum(e.n for e in evaluations)
    return invariant(
        not bad,
        f"the scores and row counts of {len(evaluations)} evaluations",
        "; ".join(bad) if bad else f"{rows:,} rows were scored, and every score is a number",
        "the data set is empty, or the model computes NaN: look at the samples in results/",
    )


def holds(recovery: Recovery, variant: str) -> Check:
    """A good scheme loses at most two points on the embedded model."""
    return expectation(
        recovery.difference >= -HOLDS,
        f"{variant} against the baseline on the same {recovery.n} problems",
        f"it is {recovery.difference * 100:+.1f} points away (at most {HOLDS * 100:.0f} points may be lost)",
        "look at the recipe: smoothing before GPTQ, lm_head ignored, calibration on the right domain",
    )


def collapses(recovery: Recovery, variant: str) -> Check:
    """Plain INT8 rounding loses at least twenty points on the embedded model."""
    return expectation(
        recovery.difference <= -COLLAPSE,
        f"{variant} against the baseline on the same {recovery.n} problems",
        f"it is {recovery.difference * 100:+.1f} points away (a collapse is {COLLAPSE * 100:.0f} points or more)",
        "was the base model made with its planted outliers? Delete checkpoints/bf16 and run lab 00 again",
    )


def setting_matters(right: float, wrong: float, setting: str, rows: int) -> Check:
    """A wrong setting costs the embedded model at least twenty points."""
    return expectation(
        right - wrong >= COLLAPSE,
        f"the baseline's score with and without {setting}, on {rows} rows",
        f"{right:.3f} with it, {wrong:.3f} without",
        f"the two runs were judged alike: is {setting} really set in one and not in the other?",
    )


def rises_first(first: Sequence[float], second: Sequence[float], names: tuple[str, str], times: float = 2.0) -> Check:
    """Along a sweep, one figure leaves its starting value before the other, and both leave it in the end."""

    def leaves(values: Sequence[float]) -> int:
        return next((i for i, value in enumerate(values) if value > times * values[0]), len(values))

    one, two, last = leaves(first), leaves(second), len(first) - 1
    apart = first[one] > second[one] if one <= last else False
    return expectation(
        one <= two and apart and two <= last,
        f"{len(first)} points of a sweep",
        f"{names[0]} {first[0]:.3g} to {first[-1]:.3g} nats, {names[1]} {second[0]:.3g} to {second[-1]:.3g}",
        "look at the factors: the smallest must be harmless, and the largest beyond the format's range",
    )


def all_answered(questions: Sequence[str], answers: Sequence[str]) -> Check:
    """Every question got an answer with words in it."""
    empty = sum(not answer.strip() for answer in answers)
    return invariant(
        len(questions) == len(answers) > 0 and not empty,
        f"the answers to {len(questions)} questions",
        f"{len(answers) - empty} answers with words in them",
        "look at the script's log: did the model stop at once, or was its chat template applied twice?",
    )


def answers_alike(before: Sequence[str], after: Sequence[str]) -> Check:
    """The quantized model gives most of the answers that the baseline gives."""
    same = sum(a == b for a, b in zip(before, after, strict=True))
    return expectation(
        2 * same >= len(before),
        f"{len(before)} answers before and after",
        f"{same} are the same, word for word",
        "look at the answers above: nonsense after means that the checkpoint is damaged",
    )


def outliers_found(found: Mapping[str, Sequence[int]], planted: Sequence[int]) -> Check:
    """Every layer behind a norm shows exactly the planted channels. `found`: layer name to its outlier channels."""
    wrong = {layer: channels for layer, channels in found.items() if set(channels) != set(planted)}
    return expectation(
        bool(found) and not wrong,
        f"the outlier channels of {len(found)} layers",
        f"the same channels in every layer: {sorted(planted)}" if not wrong else f"other channels in {wrong}",
        "capture activations on real rows, not on one token",
    )


def less_is_better(smaller: float, larger: float, looked_at: str, names: tuple[str, str], margin: float = 1.0) -> Check:
    """The first figure is below the second by at least the factor `margin`."""
    return expectation(
        smaller * margin < larger,
        looked_at,
        f"{names[0]} {smaller:.4g}, {names[1]} {larger:.4g}",
        "look at the granularity and the rows that you used; the embedded model shows this on any of its rows",
    )
