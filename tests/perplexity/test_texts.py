"""Held-out text: windows of real text, rows of the embedded corpus, and clear errors where text is missing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labkit.errors import DataError
from labkit.perplexity import held_out_rows
from labkit.profiles import TINY, WORKBENCH, HeldOut
from labkit.tiny import corpus
from tests.models import small_tokenizer

WIKITEXT = WORKBENCH.simulation.texts[0]


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


def test_rows_with_a_text_column_are_joined_by_blank_lines(tmp_path: Path) -> None:
    spec = text(tmp_path, "mine.jsonl", '{"text": "one two three"}\n{"text": "four five six"}\n')
    tokenizer = small_tokenizer()
    (row,) = held_out_rows(replace(spec, length=8), tokenizer, data=str(tmp_path))[:1]
    assert row.ids == tuple(tokenizer("one two three\n\nfour five six")["input_ids"][:8])


def test_only_the_first_documents_are_read_where_that_is_asked_for(tmp_path: Path) -> None:
    spec = text(tmp_path, "mine.jsonl", '{"text": "one two three"}\n' * 3 + '{"text": 5}\n')
    with pytest.raises(DataError, match="row 4 has no text"):
        held_out_rows(spec, small_tokenizer(), data=str(tmp_path))
    assert held_out_rows(replace(spec, documents=3, length=4), small_tokenizer(), data=str(tmp_path))


def test_a_text_shorter_than_one_window_is_refused(tmp_path: Path) -> None:
    spec = text(tmp_path, "mine.txt", "too short")
    with pytest.raises(DataError, match="one window takes 16"):
        held_out_rows(spec, small_tokenizer(), data=str(tmp_path))


def test_a_text_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"text wikitext2.*wikitext2_test"):
        held_out_rows(WIKITEXT, small_tokenizer(), data=str(tmp_path))


def test_stories_are_predicted_whole_and_problems_from_the_answer_on() -> None:
    tokenizer = small_tokenizer()
    stories, problems = (held_out_rows(spec, tokenizer) for spec in TINY.simulation.texts)
    assert (len(stories), len(problems)) == (64, 64)
    assert {row.given for row in stories} == {1}
    for row, problem in zip(problems, corpus.problems("test", 64), strict=True):
        assert problem.question in tokenizer.decode(row.ids[: row.given])
        assert tokenizer.decode(row.ids[row.given :], skip_special_tokens=True).strip() == problem.answer


def test_a_text_that_no_hub_has_says_what_file_to_give() -> None:
    with pytest.raises(DataError, match="the text ptb comes from no hub") as caught:
        held_out_rows(WORKBENCH.simulation.texts[2], small_tokenizer())
    assert "ptb_test.jsonl" in caught.value.fix
