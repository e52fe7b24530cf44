"""The grid's scores and the claims judged on them: paired, and honest where rows can't tell."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest

from labkit.behaviour import Losses
from labkit.errors import UsageError
from labkit.simulation import paper_grid
from labkit.zeroquant import CLAIMS, LORC, MEANS, VARIANTS, Claim, Scored, judge, over_baseline, rise

PUBLISHED = Path(__file__).parents[2] / "shared" / "published.md"
SCHEMES = {scheme.variant: scheme for scheme in paper_grid()}
FP4_BEATS_INT4 = Claim("FP4 beats INT4", "w4a8-int-fp", "w4a8-fp-fp")
FP4_IS_NO_WORSE = Claim("FP4 is no worse", "w4a8-int-fp", "w4a8-fp-fp", "no worse")


def scored(variant: str, shift: float = 0.0, noise: float = 0.0, rows: int = 60) -> Scored:
    """Two texts of rows that differ much from one another; shift: nats a token better on all of them."""
    rng, own = random.Random(0), random.Random(variant)
    losses = {
        name: Losses(
            tuple(-rng.uniform(0.5, 3) + shift + own.gauss(0, noise) for _ in range(rows)),
            tuple(rng.randint(20, 60) for _ in range(rows)),
        )
        for name in ("stories", "problems")
    }
    return Scored(SCHEMES[variant], "gptq", 4.06, losses)


def test_the_perplexity_of_a_row_of_the_grid_is_the_mean_over_the_texts() -> None:
    found = scored("bf16")
    parts = [losses.perplexity for losses in found.losses.values()]
    assert found.perplexity == pytest.approx(sum(parts) / 2)
    errors = [losses.stderr for losses in found.losses.values()]
    assert found.stderr == pytest.approx(math.hypot(*errors) / 2)
    assert found.rows == 120


@pytest.mark.parametrize(
    ("claim", "shift", "noise", "in_words"),
    [
        (FP4_BEATS_INT4, 0.02, 0.02, "holds here"),
        (FP4_BEATS_INT4, -0.02, 0.02, "fails here"),
        (FP4_BEATS_INT4, 0.0, 0.02, "can't tell here"),
        (FP4_IS_NO_WORSE, 0.02, 0.02, "holds here"),
        (FP4_IS_NO_WORSE, 0.0, 0.02, "holds here"),
        (FP4_IS_NO_WORSE, -0.01, 0.02, "can't tell here"),
        (FP4_IS_NO_WORSE, -0.03, 0.02, "fails here"),
        (FP4_IS_NO_WORSE, -0.005, 0.002, "holds here, worse by less than 1%"),
    ],
)
def test_a_small_difference_on_all_rows_decides_and_noise_does_not(
    claim: Claim, shift: float, noise: float, in_words: str
) -> None:
    found = judge(claim, [scored("w4a8-int-fp", noise=noise), scored("w4a8-fp-fp", shift, noise)])
    assert found.in_words == in_words
    assert in_words.startswith(found.verdict)
    assert found.ci_low <= found.ratio <= found.ci_high
    assert found.ratio == pytest.approx(math.exp(shift), abs=0.01)
    published = {"holds here": True, "fails here": False, "can't tell here": None}  # 6 and 8 of 8 models
    assert found.agrees is published[found.verdict]


def test_a_claim_is_counted_on_the_published_models() -> None:
    assert Claim("x", "w8a8-int-int", "w8a8-int-fp").published == (8, 8)
    assert FP4_BEATS_INT4.published == (6, 8)  # LLaMA-3b is worse, OPT-13b equal
    assert FP4_IS_NO_WORSE.published == (8, 8)
    not_legible = Claim("x", "bf16", "w4a8-fp-fp-m2")
    assert not_legible.published is None
    assert judge(not_legible, [scored("bf16"), scored("w4a8-fp-fp-m2", 0.1)]).agrees is None


def test_a_scheme_over_the_baseline_has_the_interval_of_the_claim_the_other_way_round() -> None:
    grid = [scored("bf16", noise=0.02), scored("w4a8-fp-fp", -0.05, noise=0.02)]
    ratio, low, high = over_baseline(grid[1], grid[0])
    assert low < ratio < high
    assert ratio == pytest.approx(math.exp(0.05), abs=0.01)
    assert ratio == pytest.approx(judge(Claim("x", "w4a8-fp-fp", "bf16"), grid).ratio)
    assert over_baseline(grid[0], grid[0]) == (1, 1, 1)


def test_a_scheme_that_was_not_scored_or_twice_or_on_other_rows_is_refused() -> None:
    with pytest.raises(UsageError, match="w4a8-fp-fp was scored 0 times"):
        judge(FP4_BEATS_INT4, [scored("w4a8-int-fp")])
    with pytest.raises(UsageError, match="w4a8-int-fp was scored 2 times"):
        judge(FP4_BEATS_INT4, [scored("w4a8-int-fp"), scored("w4a8-int-fp"), scored("w4a8-fp-fp")])
    with pytest.raises(UsageError, match="scored on other rows"):
        judge(Claim("x", "w4a8-int-fp", "w4a8-fp-fp"), [scored("w4a8-int-fp"), scored("w4a8-fp-fp", rows=50)])


def test_published_figures_and_claims_are_about_rows_of_the_grid() -> None:
    assert all(len(row) == len(VARIANTS) == 7 for row in MEANS.values())
    assert set(VARIANTS) | {variant for claim in CLAIMS for variant in (claim.other, claim.candidate)} <= SCHEMES.keys()
    assert rise("OPT-30b", "w8a8-int-int") == pytest.approx(25.76 / 10.70)
    assert rise("LLaMA-7b", "bf16") == 1


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the list of published figures lies beside the project, not in it")
def test_published_figures_are_those_of_the_list() -> None:
    lines = PUBLISHED.read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("|")]
    for heading in (row for row in cells if row[:2] == ["bits", "weight–activation"]):
        below = cells[cells.index(heading) + 2 :][: len(VARIANTS)]
        for column, model in enumerate(heading[2:], start=2):
            means = [float(row[column].split()[0]) for row in below]
            assert MEANS[model.split()[0]] == tuple(means), model
    (lorc,) = (line for line in lines if line.startswith("LoRC"))
    found = re.findall(r"W(\d) (\d+\.\d+) → (\d+\.\d+)", lorc)
    assert {int(bits): (float(without), float(with_it)) for bits, without, with_it in found} == LORC
