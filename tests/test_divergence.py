"""How far next-token distributions are apart, against torch's own KL divergence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from labkit import checkpoint
from labkit.divergence import divergences, divergences_by_row, log_probabilities, mean_kl
from tests.models import make_model

ROWS = [[3, 4, 5, 6, 7], [9, 8], [10, 11, 12]]


def test_each_row_has_torchs_divergence_and_the_mean_counts_tokens(tmp_path: Path) -> None:
    base, other = make_model(tmp_path / "base", seed=1), make_model(tmp_path / "other", seed=2)
    p, q = (log_probabilities(checkpoint.load(folder).eval(), ROWS) for folder in (base, other))
    expected = [
        float(torch.nn.functional.kl_div(b, a, log_target=True, reduction="batchmean"))
        for a, b in zip(p, q, strict=True)
    ]
    same, far = divergences_by_row(base, [base, other], ROWS)
    assert same == [0.0, 0.0, 0.0]
    assert far == pytest.approx(expected, rel=1e-5)
    assert divergences(base, [base, other], ROWS) == pytest.approx([0.0, mean_kl(p, q)], rel=1e-6)
    by_token = sum(kl * len(row) for kl, row in zip(expected, ROWS, strict=True)) / 10
    assert mean_kl(p, q) == pytest.approx(by_token, rel=1e-5)
