"""Perplexity by our own loop: the definition on a known model, and lm-eval's own log-likelihoods, row by row."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit import checkpoint, tiny
from labkit.errors import DataError
from labkit.evaluation import Request, evaluate, load_samples
from labkit.perplexity import Row, held_out_rows, losses
from labkit.profiles import TINY
from labkit.workspace import Workspace
from tests.models import make_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return checkpoint.load(make_model(tmp_path_factory.mktemp("models") / "base"), dtype="float32")


def row(length: int, seed: int, given: int = 1) -> Row:
    ids = torch.randint(5, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Row(tuple(ids), given)


def test_a_row_is_the_mean_log_probability_of_what_is_not_given(model: Any) -> None:
    rows = [row(9, 0), row(30, 1, given=12), row(2, 2)]
    found = losses(model, rows)
    for score, tokens, each in zip(found.scores, found.tokens, rows, strict=True):
        with torch.no_grad():
            log_p = model(torch.tensor([each.ids])).logits[0].log_softmax(-1)
        wanted = [float(log_p[t - 1, each.ids[t]]) for t in range(each.given, len(each.ids))]
        assert tokens == len(wanted)
        assert score == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)
    total = -sum(s * n for s, n in zip(found.scores, found.tokens, strict=True))
    assert found.perplexity == pytest.approx(math.exp(total / sum(found.tokens)))


def test_rows_do_not_depend_on_their_neighbors(model: Any) -> None:
    rows = [row(length, length) for length in (40, 3, 200, 17)]
    together = losses(model, rows).scores
    alone = [losses(model, [each]).scores[0] for each in rows]
    assert together == pytest.approx(alone, rel=1e-4)


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(model: Any) -> None:
    head = model.lm_head.weight.data.clone()
    try:
        model.lm_head.weight.data.zero_()
        found = losses(model, [row(50, 3)])
    finally:
        model.lm_head.weight.data.copy_(head)
    assert found.perplexity == pytest.approx(model.config.vocab_size, rel=1e-4)


def test_the_standard_error_shrinks_with_the_rows(model: Any) -> None:
    few, many = losses(model, [row(20, s) for s in range(8)]), losses(model, [row(20, s) for s in range(128)])
    assert 2 < few.stderr / many.stderr < 8  # about the root of 16


def test_stories_get_the_log_likelihoods_that_lm_eval_gives_them(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    tiny.materialize(folder)
    task = TINY.tasks[1]
    (theirs,) = evaluate(
        [Request("bf16", folder, task, backend="hf", limit=20)],
        workspace=Workspace(tmp_path / "workspace"),
        engine=TINY.engine,
        offline=True,
        log=tmp_path / "log",
    )
    spec = next(text for text in TINY.simulation.texts if text.name == "stories")
    rows = held_out_rows(spec, checkpoint.load_tokenizer(folder))[:20]
    ours = losses(checkpoint.load(folder), rows)
    totals = [score * tokens for score, tokens in zip(ours.scores, ours.tokens, strict=True)]
    assert totals == pytest.approx([s.score * s.weight for s in load_samples(theirs.samples)], rel=0.02)


@pytest.mark.parametrize("rows", [[], [Row((7,))], [Row((7, 8), given=2)], [Row((7, 8), given=0)]])
def test_rows_that_predict_nothing_are_refused(model: Any, rows: list[Row]) -> None:
    with pytest.raises(DataError, match="at least one token after the first"):
        losses(model, rows)


def test_a_model_that_answers_nan_has_no_perplexity(model: Any) -> None:
    weight = model.lm_head.weight.data
    kept = weight[0, 0].clone()
    try:
        weight[0, 0] = float("nan")
        with pytest.raises(DataError, match="NaN or infinity on 2 of 2 rows"):
            losses(model, [row(5, 0), row(6, 1)])
    finally:
        weight[0, 0] = kept
