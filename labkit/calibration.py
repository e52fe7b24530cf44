"""Calibration rows: from the embedded corpus, a hub data set or a local file, to token ids with a fingerprint.

What a quantizer sees of a model's activations is what these rows make it compute, so how they were chosen is stored
with the checkpoint. How a row becomes token ids is the business of `rows.py`, how a local file is found that of
`localdata.py`.
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from labkit.errors import DataError, UsageError
from labkit.hubdata import hub_rows
from labkit.localdata import find_data_file, read_rows
from labkit.rows import Text, columns_of, levelled, text_of, tokens_of, turns

if TYPE_CHECKING:
    from pathlib import Path

    from datasets import Dataset

    from labkit.profiles import Calibration
    from labkit.tiny.corpus import Split

STORIES_EVERY = 8  # in the embedded corpus, one row in eight is a story, about as in the model's training
USE = "calibration rows"


@dataclass(frozen=True)
class _Source:
    """Where rows come from: `read(i)` gives row i, and `name` says in messages and manifests what this is.

    order: the rows in the order they are chosen, so that fewer rows are always the beginning of more.
    """

    name: str
    columns: tuple[str, ...]
    order: list[int]
    read: Callable[[int], Text]


@dataclass(frozen=True)
class CalibrationSet:
    """Tokenized calibration rows and how they came about.

    input_ids: a list of token ids for each row, at most `max_length` long. requested: rows asked for, equal to
    `len(input_ids)`. dropped_empty: rows without text that were met on the way. columns: the columns that were read.
    fingerprint: SHA-256 over the token ids and all of these settings.
    """

    input_ids: list[list[int]]
    source: str
    columns: tuple[str, ...]
    requested: int
    dropped_empty: int
    max_length: int  # tokens
    seed: int
    fingerprint: str
    texts: tuple[str, ...] = ()  # the rows' words, levelled (see rows.py); random rows have none

    @property
    def tokens(self) -> int:
        """Token ids in all rows together."""
        return sum(len(row) for row in self.input_ids)

    def dataset(self) -> Dataset:
        """What `oneshot(dataset=...)` takes: columns input_ids and attention_mask, already tokenized."""
        import numpy
        import pyarrow
        from datasets import Dataset

        ends = numpy.cumsum([0, *map(len, self.input_ids)], dtype=numpy.int32)
        tokens = numpy.fromiter(chain.from_iterable(self.input_ids), numpy.int32, ends[-1])
        masks = numpy.ones(ends[-1], numpy.int8)
        flat = {"input_ids": pyarrow.array(tokens), "attention_mask": pyarrow.array(masks)}
        # As Arrow holds them: rows of a million Python integers take it four times as long.
        return Dataset.from_dict({name: pyarrow.ListArray.from_arrays(ends, them) for name, them in flat.items()})

    def facts(self) -> dict[str, Any]:
        """Everything but the rows, for a checkpoint's manifest."""
        settings = _settings(self.source, self.columns, self.requested, self.max_length, self.seed)
        return settings | {"dropped_empty": self.dropped_empty, "tokens": self.tokens, "fingerprint": self.fingerprint}


def calibration_set(
    spec: Calibration, tokenizer: Any, *, data: str = "", rows: int | None = None, seed: int = 0
) -> CalibrationSet:
    """`rows` (default: the profile's) rows for calibration, chosen by `seed` without replacement.

    Fewer rows are the first of more, so the rows after the n-th of a larger set were not seen by a set of n.
    data: a local folder, or one file, that replaces the hub (see `localdata`). Rows longer than `spec.max_length`
    tokens are truncated, empty ones dropped and counted. Raises DataError, naming the row and the column, if a column
    or a chat template is missing, a template fails, or fewer rows are there than asked for.
    """
    wanted = spec.rows if rows is None else rows
    if wanted < 1 or spec.max_length < 1:
        raise UsageError(
            f"{wanted} rows of {spec.max_length} tokens can't calibrate anything", fix="ask for at least one"
        )
    source = _open(spec, data, wanted, seed)
    input_ids: list[list[int]] = []
    texts: list[str] = []
    dropped = 0
    for index in source.order:
        if len(input_ids) == wanted:
            break
        text = source.read(index)
        ids = tokens_of(text, tokenizer, f"row {index + 1} of {source.name}")
        if ids:
            input_ids.append(ids[: spec.max_length])
            texts.append(levelled(text))
        else:
            dropped += 1
    if len(input_ids) < wanted:
        raise DataError(
            f"{source.name} has {len(input_ids)} rows with text, and {wanted} were asked for ({dropped} were empty)",
            why="calibration with fewer rows than it says is another calibration",
            fix="ask for fewer rows, or give more data",
        )
    made = _finish(input_ids, source.name, source.columns, dropped, spec.max_length, seed)
    return replace(made, texts=tuple(texts))


def local_file(spec: Calibration, data: str) -> Path:
    """The file of a local folder (or the one file) `data` that the rows come from; DataError if there is none."""
    return find_data_file(data, spec.data_files or ("calibration",), USE, any_name=True)


def repeated(rows: CalibrationSet, tests: Iterable[Mapping[str, Any]]) -> list[str]:
    """The questions of a test set that stand in calibration rows, word for word: scores on them say too much.

    tests: rows of a task. A question is its column `question` or `prompt`; one of a few words is no evidence.
    """
    asked = {str(row.get("question") or row.get("prompt") or ""): None for row in tests}
    wanted = {question: levelled(question) for question in asked}
    return [q for q, words in wanted.items() if words.count(" ") >= 3 and any(words in text for text in rows.texts)]


def random_text_set(tokenizer: Any, rows: int, max_length: int, seed: int = 0) -> CalibrationSet:
    """`rows` rows of `max_length` token ids drawn uniformly from the vocabulary: the wrong domain, to compare with."""
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    rng = random.Random(f"{seed}:random")
    input_ids = [rng.choices(ordinary, k=max_length) for _ in range(rows)]
    return _finish(input_ids, "random tokens", (), 0, max_length, seed)


def _settings(source: str, columns: tuple[str, ...], rows: int, max_length: int, seed: int) -> dict[str, Any]:
    return {"source": source, "columns": list(columns), "rows": rows, "max_length": max_length, "seed": seed}


def _finish(
    input_ids: list[list[int]], source: str, columns: tuple[str, ...], dropped: int, max_length: int, seed: int
) -> CalibrationSet:
    requested = len(input_ids)
    settings = _settings(source, columns, requested, max_length, seed) | {"dropped_empty": dropped}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for row in input_ids:
        digest.update(array("q", [len(row), *row]).tobytes())  # the length first, so that rows can't run together
    return CalibrationSet(input_ids, source, columns, requested, dropped, max_length, seed, digest.hexdigest())


# --- where rows come from ---------------------------------------------------------------------------------------------


def _open(spec: Calibration, data: str, rows: int, seed: int) -> _Source:
    if data:
        path = local_file(spec, data)
        return _table(path.name, read_rows(path), seed)
    if spec.source == "tiny":
        return _tiny(spec.split, rows, seed)
    return _table(f"{spec.source}, split {spec.split}", hub_rows(spec.source, spec.split, "calibration"), seed)


def order_of(rows: int, seed: int) -> list[int]:
    """The order in which the rows of a data set are taken."""
    order = list(range(rows))
    random.Random(f"{seed}:calibration").shuffle(order)
    return order


def _table(name: str, rows: list[dict[str, Any]] | Dataset, seed: int) -> _Source:
    """Rows with named columns."""
    columns = columns_of(list(rows[0]), name)
    return _Source(
        name,
        columns,
        order_of(len(rows), seed),
        lambda index: text_of(rows[index], columns, f"row {index + 1} of {name}"),
    )


def _tiny(split: str, rows: int, seed: int) -> _Source:
    """The embedded corpus: problems as the model was taught them, and each eighth row a story as plain text."""
    from labkit.tiny import corpus

    stories = corpus.stories(cast("Split", split), rows // STORIES_EVERY, seed)
    problems = iter(corpus.problems(cast("Split", split), rows - len(stories), seed))
    texts: list[Text] = []
    for index in range(rows):
        if index % STORIES_EVERY == STORIES_EVERY - 1:
            texts.append(stories[index // STORIES_EVERY].text)
        else:
            problem = next(problems)
            texts.append(turns(corpus.prompt(problem.question), f" {problem.answer}"))
    return _Source(f"tiny corpus, split {split}", ("messages", "text"), list(range(rows)), texts.__getitem__)
