"""Held-out text as rows of tokens, to measure perplexity on.

Running text (WikiText-2, C4, PTB) is joined, tokenized once and cut into windows of equal length, as papers on
quantization do it. The embedded corpus has rows of its own: stories, of which all is predicted, and problems, of which
the worked answer is, since nothing in a question says which names and numbers come next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from labkit.errors import DataError
from labkit.hubdata import hub_rows
from labkit.localdata import find_data_file, read_rows
from labkit.perplexity.losses import Row
from labkit.profiles import HeldOut
from labkit.rows import tokens_of, turns
from labkit.tiny import corpus

JOIN = "\n\n"


def held_out_rows(text: HeldOut, tokenizer: Any, *, data: str = "", seed: int = 0) -> list[Row]:
    """The first `text.rows` rows of at most `text.length` tokens, fewer if there is less text.

    data: a local folder in place of the hub. Raises DataError if the text is not there, has no such column, or does
    not fill one window.
    """
    if text.source == "tiny":
        return [Row(tuple(ids[: text.length]), given) for ids, given in _generated(text, tokenizer, seed)]
    if data:
        path = find_data_file(data, text.data_files, f"text {text.name}")
        name, found = str(path), read_rows(path)
    elif text.source:
        name = text.source
        found = hub_rows(text.source, text.split, text.data_files[0], config=text.config, file=text.file)
    else:
        raise DataError(
            f"the text {text.name} comes from no hub",
            why="the profile names no place for it",
            fix=f"give a local folder: data = FOLDER with {text.data_files[0]}.jsonl, .parquet or .txt in it",
        )
    documents = [found[index] for index in range(min(text.documents or len(found), len(found)))]
    ids = tokens_of(
        JOIN.join(_text(row, text.column, f"{name}, row {i}") for i, row in enumerate(documents, 1)), tokenizer, name
    )
    if len(ids) < text.length:
        raise DataError(
            f"{name} has {len(ids)} tokens, and one window takes {text.length}",
            why="perplexity is measured on windows of one length",
            fix="give a longer text",
        )
    windows = (ids[start : start + text.length] for start in range(0, len(ids) - text.length + 1, text.length))
    return [Row(tuple(window)) for window in itertools.islice(windows, text.rows)]


def _text(row: dict[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise DataError(
            f"{where} has no text in the column {column!r}",
            why="perplexity is measured on running text",
            fix=f"give text as .txt, or rows with a column {column!r}",
        )
    return value


def _generated(text: HeldOut, tokenizer: Any, seed: int) -> Iterator[tuple[list[int], int]]:
    """Token ids of the embedded corpus' test rows, and how many of them are given."""
    if text.name == "stories":
        for story in corpus.stories("test", text.rows, seed):
            yield tokens_of(story.text, tokenizer, "a story"), 1
        return
    for problem in corpus.problems("test", text.rows, seed):
        asked, answer = corpus.prompt(problem.question), f" {problem.answer}"
        ids = tokens_of(turns(asked, answer), tokenizer, "a problem")
        asked_only = tokenizer.apply_chat_template(turns(asked, "")[:1], add_generation_prompt=True, tokenize=False)
        yield ids, len(tokenizer(asked_only, add_special_tokens=False)["input_ids"])
