"""What a model computes: perplexity by definition and as lm-eval has it, divergence as torch has it, layers' inputs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit import checkpoint, tiny
from labkit.behaviour import (
    Row,
    capture,
    divergences,
    divergences_by_row,
    held_out_rows,
    linear_layers,
    losses,
)
from labkit.errors import DataError, UsageError
from labkit.evaluate import Request, evaluate, load_samples
from labkit.profiles import TINY, WORKBENCH, HeldOut
from labkit.store import Context, Workspace
from labkit.tiny import corpus
from tests.models import make_model, small_tokenizer

WIKITEXT = WORKBENCH.simulation.texts[0]


# --- held-out text ----------------------------------------------------------------------------------------------------


def text(tmp_path: Path, name: str, content: str) -> HeldOut:
    (tmp_path / name).write_text(content, encoding="utf-8")
    return HeldOut("some", "", rows=5, length=16, data_files=(name.rsplit(".", 1)[0],))


def test_real_text_becomes_windows_of_one_length_that_follow_one_another(shared_data: Path) -> None:
    tokenizer = small_tokenizer()
    rows = held_out_rows(WIKITEXT, tokenizer, data=str(shared_data))
    assert (len(rows), {len(row.ids) for row in rows}, {row.given for row in rows}) == (40, {2048}, {1})
    joined = [i for row in rows for i in row.ids]
    more = held_out_rows(replace(WIKITEXT, length=1024), tokenizer, data=str(shared_data))
    assert [i for row in more for i in row.ids] == joined[: 40 * 1024]


def test_rows_are_joined_by_blank_lines_and_only_so_many_are_read_as_are_asked_for(tmp_path: Path) -> None:
    spec, tokenizer = text(tmp_path, "m.jsonl", '{"text": "one two three"}\n' * 3 + '{"text": 5}\n'), small_tokenizer()
    with pytest.raises(DataError, match="row 4 has no text"):
        held_out_rows(spec, tokenizer, data=str(tmp_path))
    row, *_ = held_out_rows(replace(spec, documents=3, length=8), tokenizer, data=str(tmp_path))
    assert row.ids == tuple(tokenizer("one two three\n\none two three")["input_ids"][:8])


def test_text_that_is_too_short_or_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one window takes 16"):
        held_out_rows(text(tmp_path, "mine.txt", "too short"), small_tokenizer(), data=str(tmp_path))
    with pytest.raises(DataError, match=r"text wikitext2.*wikitext2_test"):
        held_out_rows(WIKITEXT, small_tokenizer(), data=str(tmp_path))
    with pytest.raises(DataError, match="the text ptb comes from no hub") as caught:
        held_out_rows(WORKBENCH.simulation.texts[2], small_tokenizer())
    assert "ptb_test.jsonl" in caught.value.fix


def test_stories_are_predicted_whole_and_problems_from_the_answer_on() -> None:
    tokenizer = small_tokenizer()
    stories, problems = (held_out_rows(spec, tokenizer) for spec in TINY.simulation.texts)
    assert (len(stories), len(problems)) == (64, 64)
    assert {row.given for row in stories} == {1}
    for row, problem in zip(problems, corpus.problems("test", 64), strict=True):
        assert problem.question in tokenizer.decode(row.ids[: row.given])
        assert tokenizer.decode(row.ids[row.given :], skip_special_tokens=True).strip() == problem.answer


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return checkpoint.load(make_model(tmp_path_factory.mktemp("models") / "base"), dtype="float32")


def row(length: int, seed: int, given: int = 1) -> Row:
    ids = torch.randint(5, 60, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Row(tuple(ids), given)


def test_a_row_is_the_mean_log_probability_of_what_is_not_given_and_more_rows_have_a_smaller_standard_error(
    model: Any,
) -> None:
    rows = [row(9, 0), row(30, 1, given=12), row(2, 2), row(200, 3)]
    found = losses(model, rows)
    for score, tokens, each in zip(found.scores, found.tokens, rows, strict=True):
        with torch.no_grad():
            log_p = model(torch.tensor([each.ids])).logits[0].log_softmax(-1)
        wanted = [float(log_p[t - 1, each.ids[t]]) for t in range(each.given, len(each.ids))]
        assert tokens == len(wanted)
        assert score == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)
    total = -sum(s * n for s, n in zip(found.scores, found.tokens, strict=True))
    assert found.perplexity == pytest.approx(math.exp(total / sum(found.tokens)))
    few, many = (losses(model, [row(20, seed) for seed in range(count)]) for count in (8, 128))
    assert 2 < few.stderr / many.stderr < 8  # about the root of 16


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(tmp_path: Path) -> None:
    model = checkpoint.load(make_model(tmp_path / "m"), dtype="float32")
    model.lm_head.weight.data.zero_()
    assert losses(model, [row(50, 3)]).perplexity == pytest.approx(model.config.vocab_size, rel=1e-4)
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(DataError, match="NaN or infinity on 2 of 2 rows"):
        losses(model, [row(5, 0), row(6, 1)])


def test_stories_get_the_log_likelihoods_that_lm_eval_gives_them(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    tiny.materialize(folder)
    request = Request("bf16", folder, TINY.tasks[1], backend="hf", limit=20)
    (theirs,) = evaluate([request], Context(Workspace(tmp_path / "workspace")), log=tmp_path / "log")
    spec = next(text for text in TINY.simulation.texts if text.name == "stories")
    rows = held_out_rows(spec, checkpoint.load_tokenizer(folder))[:20]
    ours = losses(checkpoint.load(folder), rows)
    totals = [score * tokens for score, tokens in zip(ours.scores, ours.tokens, strict=True)]
    assert totals == pytest.approx([s.score * s.weight for s in load_samples(theirs.samples)], rel=0.02)


@pytest.mark.parametrize("rows", [[], [Row((7,))], [Row((7, 8), given=2)], [Row((7, 8), given=0)]])
def test_rows_that_predict_nothing_are_refused(model: Any, rows: list[Row]) -> None:
    with pytest.raises(DataError, match="at least one token after the first"):
        losses(model, rows)


# --- distributions and layers -----------------------------------------------------------------------------------------


def test_each_row_has_torchs_divergence_and_the_mean_counts_tokens(tmp_path: Path) -> None:
    rows, expected = [[3, 4, 5, 6, 7], [9, 8], [10, 11, 12]], []
    base, other = make_model(tmp_path / "base", seed=1), make_model(tmp_path / "other", seed=2)
    for row in rows:
        with torch.no_grad():
            p, q = (checkpoint.load(each)(torch.tensor([row])).logits[0].float().softmax(-1) for each in (base, other))
        expected.append(float((p * (p / q).log()).sum(-1).mean()))
    same, far = divergences_by_row(base, [base, other], rows)
    assert same == [0.0, 0.0, 0.0]
    assert far == pytest.approx(expected, rel=1e-4)
    by_token = sum(kl * len(row) for kl, row in zip(expected, rows, strict=True)) / 10
    assert divergences(base, [base, other], rows) == pytest.approx([0.0, by_token], rel=1e-4)


def test_a_layers_inputs_are_captured_and_its_outlier_channels_found(model: Any) -> None:
    rows = [[5 + i % 90 for i in range(length)] for length in (200, 100)]
    found = capture(model, rows)
    assert found.keys() == linear_layers(model).keys()
    X = found["model.layers.0.self_attn.q_proj"]
    assert (X.tokens, X.sample.shape, X.absmax.shape) == (300, (256, 128), (128,))
    assert bool((X.sample.abs().amax(0) <= X.absmax).all())
    absmax = torch.ones(128)
    absmax[7], absmax[3] = 30.0, 50.0
    assert replace(X, absmax=absmax).outliers == [3, 7]
    with pytest.raises(UsageError, match="no linear layer has 'nothing' in its name"):
        linear_layers(model, "nothing")
