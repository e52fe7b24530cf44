"""Rows of text: from the embedded corpus, a hub data set or a local file, through a chat template, to token ids.

The columns of a data set decide how a row becomes text, in this order:

    messages                                          the model's chat template
    prompt + completion, question + answer,
    instruction (+ input) + output                    one user and one assistant turn through the chat template
    text                                              as it is, with the special tokens that the tokenizer adds

A chat template writes its own BOS, so templated text is tokenized with `add_special_tokens=False`: a doubled BOS moves
activations more than quantization does (lab 03).

Local files replace the hub: `data = FOLDER`. Each use (the calibration rows, a split of an evaluation task) has a list
of names in its profile, the preferred one first. The first name of which the folder has a file is taken, `NAME.jsonl`,
`NAME.parquet` or `NAME.txt`; nothing is ever guessed from a file's contents.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from labkit.errors import DataError, UsageError, first_line

if TYPE_CHECKING:
    from datasets import Dataset

    from labkit.profiles import Calibration
    from labkit.tiny.corpus import Split

Text = str | list[dict[str, Any]]  # plain text, or the messages of a chat
ENDINGS = (".jsonl", ".parquet", ".txt")
PAIRS = (("prompt", "completion"), ("question", "answer"), ("instruction", "output"))
STORIES_EVERY = 8  # in the embedded corpus, one row in eight is a story, about as in the model's training


# --- local files and the hub ------------------------------------------------------------------------------------------


def find_data_file(data: str, names: tuple[str, ...], use: str, *, any_name: bool = False) -> Path:
    """The file of the folder `data` that serves `use`, a few words for messages ("calibration rows").

    names: file names without ending, the preferred one first. `data` may also be one file. It must then have one of the
    names too, so that a model can't be calibrated on what it is judged by; where that can't happen, a caller passes
    `any_name=True`. Raises DataError, listing what was looked for and found, if nothing or more than one file fits.
    """
    place = Path(data).expanduser().absolute()
    looked_for = f"{' or '.join(names)} ({', '.join(ENDINGS)})"
    if place.is_file() and place.suffix not in ENDINGS:
        what = f"{place} can't be read as the {use}: its ending is {place.suffix or 'missing'!r}"
        raise DataError(what, "the ending says how a file is read", f"give a file that ends in {', '.join(ENDINGS)}")
    if place.is_file() and not any_name and place.stem not in names:
        raise DataError(
            f"{place} is not the {use}: that would be {looked_for}",
            "one file for every use would judge a model by the rows that it was calibrated on",
            "give a folder that holds a file for each use",
        )
    if place.is_file():
        return place
    if not place.is_dir():
        what = f"data is {data!r}, and there is no such file or folder ({place})"
        raise DataError(what, f"it should hold the {use}", "name an existing folder, or leave it empty for the hub")
    for name in names:
        fitting = [place / (name + ending) for ending in ENDINGS if (place / (name + ending)).is_file()]
        if len(fitting) > 1:
            what = f"{place} has more than one file for the {use}: {', '.join(path.name for path in fitting)}"
            raise DataError(what, "they may differ, and nothing says which one is meant", "keep one of them")
        if fitting:
            return fitting[0]
    found = sorted(path.name for path in place.iterdir() if path.suffix in ENDINGS)
    raise DataError(
        f"{place} has no file for the {use}: looked for {looked_for}, found {', '.join(found) or 'no data file'}",
        "a local folder replaces the hub, so it must hold all that this lab reads",
        "add the file, or rename yours to one of these names",
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a data file, each a dict of its columns.

    `.jsonl`: one JSON object a line; blank lines are skipped. `.parquet`: a row a record. `.txt`: a row `{"text": ...}`
    for each paragraph, that is, for lines between blank lines; in a file with no blank line, for each line. Raises
    DataError naming the file, and for `.jsonl` the line, if it can't be read or holds no row.
    """
    import pyarrow
    from pyarrow import parquet

    rows: list[dict[str, Any]]
    try:
        if path.suffix == ".parquet":
            rows = parquet.read_table(path).to_pylist()
        else:
            text = path.read_text(encoding="utf-8-sig")
            rows = _objects(text, path) if path.suffix == ".jsonl" else [{"text": each} for each in _paragraphs(text)]
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}, in line {line}",
            fix=f"convert it, for example: iconv -f LATIN1 -t UTF-8 {path.name}",
        ) from error
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} can't be read: {error}", fix="check its permissions, or copy it here again") from error
    if not rows:
        raise DataError(f"{path} has no rows", "it is empty", "look at how it was made")
    return rows


def _objects(text: str, path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also cut at U+2028 in a text
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            fix = f"see it: sed -n {number}p {path}"
            raise DataError(f"{path}, line {number} is not JSON: {error}", fix=fix) from error
        if not isinstance(row, dict):
            what, why = f"{path}, line {number} is a {type(row).__name__}, not an object", "a row has named columns"
            raise DataError(what, why, 'write {"text": ...} or the like on each line')
        rows.append(row)
    return rows


def _paragraphs(text: str) -> list[str]:
    lines = [line if line.strip() else "" for line in text.strip("\n").split("\n")]
    paragraphs = "\n".join(lines).split("\n\n") if "" in lines else lines
    return [paragraph.strip() for paragraph in paragraphs if paragraph.strip()]


def hub_rows(source: str, split: str, local_name: str, *, config: str = "", file: str = "") -> Dataset:
    """The rows of a hub data set's split. config: the data set's configuration; file: of a large set, the one to read.

    local_name: what a file in a local folder would be called that may stand in its place, for the message. Raises
    DataError if the data set can't be had, or has no rows.
    """
    import datasets

    try:
        rows = datasets.load_dataset(source, config or None, split=split, data_files={split: file} if file else None)
    except Exception as error:  # the hub client raises what its HTTP library, file system or parser does
        raise DataError(
            f"the data set {source} (split {split}) could not be loaded: {type(error).__name__}: {first_line(error)}",
            "it comes from a hub, which can't be reached from here, or has no such data set",
            f"give a local folder: data = FOLDER with {local_name}.jsonl, .parquet or .txt in it",
        ) from error
    if len(rows) == 0:
        raise DataError(f"the data set {source} has no rows in split {split}", fix="choose another split")
    return rows


# --- from a row to token ids ------------------------------------------------------------------------------------------


def columns_of(names: list[str], source: str) -> tuple[str, ...]:
    """The columns that a row's text is made of."""
    choices: list[tuple[str, ...]] = [("messages",), *PAIRS, ("text",)]
    for columns in choices:
        if set(columns) <= set(names):
            return ("instruction", "output", "input") if "instruction" in columns and "input" in names else columns
    raise DataError(
        f"{source} has the columns {', '.join(sorted(names)) or '(none)'}, and none of them is text that labkit knows",
        "nothing says what the model would read",
        f"rename columns to one of: {'; '.join(' + '.join(columns) for columns in choices)}",
    )


def turns(user: str, assistant: str) -> list[dict[str, Any]]:
    """One question and its answer as messages."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def text_of(row: dict[str, Any], columns: tuple[str, ...], where: str) -> Text:
    """A row's text or messages; "" if it has no text at all. where: the row's place, for messages."""
    if missing := [column for column in columns if column not in row and column != "input"]:
        raise DataError(f"{where} has no column {missing[0]!r}", "other rows have it", "mend or remove the row")
    values = {column: "" if row.get(column) is None else row[column] for column in columns}
    if "messages" in values:
        chat = [] if row["messages"] is None else row["messages"]
        if not (isinstance(chat, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in chat)):
            what = f"{where}: column 'messages' is not a list of objects with role and content"
            raise DataError(what, "the chat template reads those", 'write [{"role": "user", "content": "..."}, ...]')
        return chat if plain_words(chat) else ""
    for column, value in values.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: column {column!r} holds a {type(value).__name__}, not text", fix="mend the row")
    texts = list(values.values())
    if len(texts) == 1 or not any(map(str.strip, texts)):
        return texts[0] if texts[0].strip() else ""
    user, assistant, *more = texts
    return turns("\n\n".join([user, *filter(str.strip, more)]), assistant)


def tokens_of(text: Text, tokenizer: Any, where: str) -> list[int]:
    """Token ids of plain text, with special tokens, or of a chat, whose template writes its own."""
    if isinstance(text, str):
        return list(tokenizer(text, verbose=False)["input_ids"]) if text else []
    if not tokenizer.chat_template:
        raise DataError(
            f"{where} is a chat, and this model's tokenizer has no chat template",
            "nothing says how the turns are written for this model",
            "use the instruct version of the model, or data with a plain `text` column",
        )
    try:
        chat = tokenizer.apply_chat_template(text, tokenize=False)
    except Exception as error:  # a template is a program of the model's author; it raises what it likes
        what = f"the chat template failed on {where}: {type(error).__name__}: {first_line(error)}"
        raise DataError(what, "it accepts only some sequences of roles", "mend or remove the row") from error
    return list(tokenizer(chat, add_special_tokens=False, verbose=False)["input_ids"])


# --- calibration rows -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CalibrationSet:
    """Tokenized calibration rows and how they came about.

    input_ids: token ids of each row, at most `max_length` of them. columns: those that were read. dropped_empty:
    rows without text that were met on the way. texts: the rows' words, as `plain_words` gives them, if not random.
    """

    input_ids: list[list[int]]
    source: str
    columns: tuple[str, ...]
    dropped_empty: int
    max_length: int  # tokens
    seed: int
    texts: tuple[str, ...] = ()

    def dataset(self) -> Dataset:
        """What `oneshot(dataset=...)` takes: columns input_ids and attention_mask, already tokenized."""
        from datasets import Dataset

        masks = [[1] * len(row) for row in self.input_ids]
        return Dataset.from_dict({"input_ids": self.input_ids, "attention_mask": masks})

    def facts(self) -> dict[str, Any]:
        """Everything but the rows, for a checkpoint's manifest. fingerprint: SHA-256 of token ids and settings."""
        settings = {
            "source": self.source,
            "columns": list(self.columns),
            "rows": len(self.input_ids),
            "max_length": self.max_length,
            "seed": self.seed,
            "dropped_empty": self.dropped_empty,
        }
        digest = hashlib.sha256(json.dumps([settings, self.input_ids], sort_keys=True).encode()).hexdigest()
        return settings | {"tokens": sum(map(len, self.input_ids)), "fingerprint": digest}

    @property
    def fingerprint(self) -> str:
        return str(self.facts()["fingerprint"])


def calibration_set(
    spec: Calibration, tokenizer: Any, *, data: str = "", rows: int | None = None, seed: int = 0
) -> CalibrationSet:
    """`rows` (default: the profile's) rows for calibration, chosen by `seed` without replacement.

    Fewer rows are the first of more, so the rows after the n-th of a larger set were not seen by a set of n.
    data: a local folder, or one file, that replaces the hub. Rows longer than `spec.max_length` tokens are truncated,
    empty ones dropped and counted. Raises DataError, naming the row and the column, if a column or a chat template is
    missing, a template fails, or fewer rows are there than asked for.
    """
    wanted = spec.rows if rows is None else rows
    if wanted < 1 or spec.max_length < 1:
        raise UsageError(f"{wanted} rows of {spec.max_length} tokens calibrate nothing", fix="ask for at least one")
    source, columns, found = _open(spec, data, wanted, seed)
    input_ids: list[list[int]] = []
    texts, dropped = [], 0
    for where, text in found:
        if ids := tokens_of(text, tokenizer, where):
            input_ids.append(ids[: spec.max_length])
            texts.append(plain_words(text))
        else:
            dropped += 1
        if len(input_ids) == wanted:
            return CalibrationSet(input_ids, source, columns, dropped, spec.max_length, seed, tuple(texts))
    raise DataError(
        f"{source} has {len(input_ids)} rows with text, and {wanted} were asked for ({dropped} were empty)",
        "calibration with fewer rows than it says is another calibration",
        "ask for fewer rows, or give more data",
    )


def random_text_set(tokenizer: Any, rows: int, max_length: int, seed: int = 0) -> CalibrationSet:
    """`rows` rows of `max_length` token ids drawn uniformly from the vocabulary: the wrong domain, to compare with."""
    special = set(tokenizer.all_special_ids)
    ordinary = [token for token in range(len(tokenizer)) if token not in special]
    rng = random.Random(f"{seed}:random")
    input_ids = [rng.choices(ordinary, k=max_length) for _ in range(rows)]
    return CalibrationSet(input_ids, "random tokens", (), 0, max_length, seed)


def repeated(rows: CalibrationSet, tests: Iterable[Mapping[str, Any]]) -> list[str]:
    """The questions of a test set that stand in calibration rows, word for word: scores on them say too much.

    tests: rows of a task. A question is its column `question` or `prompt`; one of a few words is no evidence.
    """
    asked = dict.fromkeys(str(row.get("question") or row.get("prompt") or "") for row in tests)
    words = {question: plain_words(question) for question in asked}
    return [q for q, said in words.items() if said.count(" ") >= 3 and any(said in text for text in rows.texts)]


def plain_words(text: Text) -> str:
    """All words of a row, without differences of case and spaces, so that a sentence is found again elsewhere."""
    said = text if isinstance(text, str) else " ".join(str(message["content"] or "") for message in text)
    return " ".join(said.casefold().split())


def order_of(rows: int, seed: int) -> list[int]:
    """The order in which the rows of a data set are taken."""
    order = list(range(rows))
    random.Random(f"{seed}:calibration").shuffle(order)
    return order


def _open(
    spec: Calibration, data: str, rows: int, seed: int
) -> tuple[str, tuple[str, ...], Iterator[tuple[str, Text]]]:
    """Where rows come from, their columns, and the texts in the order in which they are taken, each with its place."""
    if spec.source == "tiny" and not data:
        name = f"tiny corpus, split {spec.split}"
        texts = enumerate(_tiny(cast("Split", spec.split), rows, seed), start=1)
        return name, ("messages", "text"), ((f"row {number} of {name}", text) for number, text in texts)
    found: list[dict[str, Any]] | Dataset
    if data:
        path = find_data_file(data, spec.data_files or ("calibration",), "calibration rows", any_name=True)
        name, found = path.name, read_rows(path)
    else:
        name, found = f"{spec.source}, split {spec.split}", hub_rows(spec.source, spec.split, "calibration")
    columns = columns_of(list(found[0]), name)
    places = ((index, f"row {index + 1} of {name}") for index in order_of(len(found), seed))
    return name, columns, ((place, text_of(found[index], columns, place)) for index, place in places)


def _tiny(split: Split, rows: int, seed: int) -> Iterator[Text]:
    """The embedded corpus: problems as the model was taught them, and each eighth row a story as plain text."""
    from labkit.tiny import corpus

    stories = iter(corpus.stories(split, rows // STORIES_EVERY, seed))
    problems = iter(corpus.problems(split, rows - rows // STORIES_EVERY, seed))
    for number in range(1, rows + 1):
        if number % STORIES_EVERY == 0:
            yield next(stories).text
        else:
            problem = next(problems)
            yield turns(corpus.prompt(problem.question), f" {problem.answer}")
