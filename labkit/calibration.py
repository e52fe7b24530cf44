"""Calibration rows: from the embedded corpus, a hub data set or a local file, to token ids with a fingerprint.

What a quantizer sees of a model's activations is what these rows make it compute, so how they were chosen is stored
with the checkpoint. The columns of a data set decide how a row becomes text, in this order:

    messages                                          the model's chat template
    prompt + completion, question + answer,
    instruction (+ input) + output                    one user and one assistant turn through the chat template
    text                                              as it is, with the special tokens that the tokenizer adds

A chat template writes its own BOS, so templated text is tokenized with `add_special_tokens=False`: a doubled BOS moves
activations more than quantization does (lab 03).
"""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from labkit.errors import DataError, UsageError
from labkit.localdata import find_data_file, read_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from labkit.profiles import Calibration
    from labkit.tiny.corpus import Split

Text = str | list[dict[str, Any]]  # plain text, or the messages of a chat

PAIRS = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))
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

    @property
    def tokens(self) -> int:
        """Token ids in all rows together."""
        return sum(len(row) for row in self.input_ids)

    def dataset(self) -> Dataset:
        """What `oneshot(dataset=...)` takes: columns input_ids and attention_mask, already tokenized."""
        from datasets import Dataset

        masks = [[1] * len(row) for row in self.input_ids]
        return Dataset.from_dict({"input_ids": self.input_ids, "attention_mask": masks})

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
    dropped = 0
    for index in source.order:
        if len(input_ids) == wanted:
            break
        ids = _tokens(source.read(index), tokenizer, f"row {index + 1} of {source.name}")
        if ids:
            input_ids.append(ids[: spec.max_length])
        else:
            dropped += 1
    if len(input_ids) < wanted:
        raise DataError(
            f"{source.name} has {len(input_ids)} rows with text, and {wanted} were asked for ({dropped} were empty)",
            why="calibration with fewer rows than it says is another calibration",
            fix="ask for fewer rows, or give more data",
        )
    return _finish(input_ids, source.name, source.columns, dropped, spec.max_length, seed)


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
        path = find_data_file(data, spec.data_files or ("calibration",), USE, any_name=True)
        return _table(path.name, read_rows(path), seed)
    if spec.source == "tiny":
        return _tiny(spec.split, rows, seed)
    return _table(f"{spec.source}, split {spec.split}", _hub_rows(spec.source, spec.split), seed)


def _table(name: str, rows: list[dict[str, Any]] | Dataset, seed: int) -> _Source:
    """Rows with named columns."""
    columns = _columns(list(rows[0]), name)
    order = list(range(len(rows)))
    random.Random(f"{seed}:calibration").shuffle(order)
    return _Source(name, columns, order, lambda index: _text(rows[index], columns, f"row {index + 1} of {name}"))


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
            texts.append(_turns(corpus.prompt(problem.question), f" {problem.answer}"))
    return _Source(f"tiny corpus, split {split}", ("messages", "text"), list(range(rows)), texts.__getitem__)


def _hub_rows(source: str, split: str) -> Dataset:
    import datasets

    try:
        rows = datasets.load_dataset(source, split=split)
    except Exception as error:  # the hub client raises what its HTTP library, file system or parser does
        raise DataError(
            f"the data set {source} (split {split}) could not be loaded: {type(error).__name__}: {_first_line(error)}",
            why="it comes from a hub, which can't be reached from here, or has no such data set",
            fix="give a local folder: data = FOLDER with calibration.jsonl, .parquet or .txt in it",
        ) from error
    if len(rows) == 0:
        raise DataError(f"the data set {source} has no rows in split {split}", fix="choose another split")
    return rows


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:300]


# --- how a row becomes tokens -----------------------------------------------------------------------------------------


def _columns(names: list[str], source: str) -> tuple[str, ...]:
    """The columns that a row's text is made of."""
    choices: list[tuple[str, ...]] = [("messages",), *PAIRS, ("text",)]
    for columns in choices:
        if set(columns) <= set(names):
            return ("instruction", "output", "input") if "instruction" in columns and "input" in names else columns
    raise DataError(
        f"{source} has the columns {', '.join(sorted(names)) or '(none)'}, and none of them is text that labkit knows",
        why="nothing says what the model would read",
        fix=f"rename columns to one of: {'; '.join(' + '.join(columns) for columns in choices)}",
    )


def _turns(user: str, assistant: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def _text(row: dict[str, Any], columns: tuple[str, ...], where: str) -> Text:
    """A row's text or messages; "" if it has no text at all."""
    if missing := [column for column in columns if column not in row]:
        raise DataError(f"{where} has no column {missing[0]!r}", why="other rows have it", fix="mend or remove the row")
    if columns == ("messages",):
        return _messages(row["messages"], where)
    texts = [_string(row[column], column, where) for column in columns]
    if columns == ("text",) or not any(text.strip() for text in texts):
        return texts[0] if texts[0].strip() else ""
    user, assistant, *more = texts
    return _turns("\n\n".join([user, *filter(str.strip, more)]), assistant)


def _string(value: Any, column: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: column {column!r} holds a {type(value).__name__}, not text", fix="mend the row")
    return value


def _messages(value: Any, where: str) -> Text:
    messages = [] if value is None else value
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and {"role", "content"} <= set(m) for m in messages
    ):
        raise DataError(
            f"{where}: column 'messages' is not a list of objects with role and content",
            why="the chat template reads those",
            fix='write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
        )
    return messages if any(str(message["content"] or "").strip() for message in messages) else ""


def _tokens(text: Text, tokenizer: Any, where: str) -> list[int]:
    """Token ids of plain text, with special tokens, or of a chat, whose template writes its own."""
    if isinstance(text, str):
        return list(tokenizer(text, verbose=False)["input_ids"]) if text else []
    if not tokenizer.chat_template:
        raise DataError(
            f"{where} is a chat, and this model's tokenizer has no chat template",
            why="nothing says how the turns are written for this model",
            fix="use the instruct version of the model, or data with a plain `text` column",
        )
    try:
        chat = tokenizer.apply_chat_template(text, tokenize=False)
    except Exception as error:  # a template is a program of the model's author; it raises what it likes
        raise DataError(
            f"the chat template failed on {where}: {type(error).__name__}: {_first_line(error)}",
            why="the template accepts only some sequences of roles",
            fix="mend or remove the row",
        ) from error
    return list(tokenizer(chat, add_special_tokens=False, verbose=False)["input_ids"])
