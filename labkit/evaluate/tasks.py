"""The files behind a task: generated rows for the embedded model, lm-eval's data sets, or local files in their place.

A task is always lm-eval's YAML, either the packaged one or labkit's of the same kind. What changes at run time is only
where its rows lie. IFEval also counts sentences, with NLTK's `punkt_tab`, which is found, downloaded, or trained here.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.data import find_data_file, read_rows
from labkit.errors import DataError
from labkit.files import file_sha256, write_atomically
from labkit.profiles import Task
from labkit.store import Context
from labkit.tiny import corpus

DEFINITIONS = Path(__file__).parents[1] / "tiny" / "tasks"
GENERATED = ("tiny_problems", "tiny_stories")
GENERATED_ROWS = 500  # at least, and all there are where a task sets no limit; a smaller limit reads the first of them
FEW_SHOT_ROWS = 200  # what lm-eval draws few-shot examples from
ENGLISH_STORIES = 2000  # what a sentence splitter is trained on
TRAINED = "trained_by_labkit"  # beside a sentence splitter that is not NLTK's own
NLTKS, OURS = "nltk punkt_tab", "trained on generated English"


@dataclass(frozen=True)
class TaskFiles:
    """Where a task's rows lie.

    data_files: split to JSONL file; empty for the data set that the task's definition names. data: what to record about
    the rows, a source with a digest of their contents.
    """

    data_files: dict[str, str] = field(default_factory=dict)
    data: str = "hub"


def _cache(context: Context) -> Path:
    return context.workspace.root / "cache" / "evaluation"


def task_files(task: Task, context: Context, *, rows: int | None = None) -> TaskFiles:
    """Makes a task's rows ready, in the workspace where they are generated or converted. rows: how many will be scored.

    A local data folder of the context replaces hub data sets; files are matched by `Task.data_files`. Raises DataError
    when a file is missing, ambiguous or can't be read.
    """
    data, seed, folder = context.data, context.seed, _cache(context)
    if task.name in GENERATED:
        count = max(rows or 0, GENERATED_ROWS)
        made = {
            split: _write_rows(folder / f"{task.name}-{split}-{count}-{seed}.jsonl", found)
            for split, found in _generated(task, count, seed).items()
        }
        return _with_digest("generated", made)
    if not data:
        return TaskFiles()
    if not task.data_files:
        why = f"data is {data!r}, so nothing may come from the hub"
        raise DataError(
            f"task {task.name} names no local files", why, "give the task `data_files`, or leave data empty"
        )
    converted = folder / hashlib.sha256(str(Path(data).absolute()).encode()).hexdigest()[:8]
    return _with_digest(
        "local", {split: _local(task, split, names, data, converted) for split, names in task.data_files.items()}
    )


def hub_source(task: str) -> tuple[str, str]:
    """The hub data set that lm-eval's packaged task reads, and its configuration ("" for none)."""
    _, definition = _definition(task)
    return str(definition["dataset_path"]), str(definition.get("dataset_name") or "")


@contextmanager
def task_file(task: Task, examples: int, files: TaskFiles) -> Iterator[str]:
    """A task file for lm-eval that includes the definition and says where the rows are; JSON is YAML.

    Splits of the definition that have no local file are switched off, or the data set would be asked for them.
    """
    path, definition = _definition(task.name)
    config: dict[str, Any] = {"include": str(path), "task": task.name, "num_fewshot": examples}
    with tempfile.TemporaryDirectory(prefix="labkit-evaluation-") as folder:
        if files.data_files:
            splits = {key: split for key, split in definition.items() if key.endswith("_split")}
            config |= {key: None for key, split in splits.items() if split not in files.data_files}
            kwargs = {"data_files": files.data_files, "cache_dir": os.path.join(folder, "cache")}
            config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": kwargs}
        written = Path(folder) / f"{task.name}.yaml"
        written.write_text(json.dumps(config))
        yield str(written)


def _definition(task: str) -> tuple[Path, dict[str, Any]]:
    """A task's YAML file, ours or the one of its name that lm-eval packages, and what stands in it."""
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    folder = DEFINITIONS if task in GENERATED else Path(lm_eval.__file__).parent / "tasks" / task
    path = folder / f"{task}.yaml"
    return path, load_yaml(path, resolve_func=False)


def _generated(task: Task, rows: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Test rows, and for problems training rows to draw few-shot examples from, as labkit.tiny.corpus makes them."""
    if task.name == "tiny_stories":
        return {"test": [{"text": story.text} for story in corpus.stories("test", rows, seed)]}
    wanted = {"test": corpus.problems("test", rows, seed), "train": corpus.problems("train", FEW_SHOT_ROWS, seed)}
    return {split: [{"question": p.question, "answer": p.answer} for p in each] for split, each in wanted.items()}


def _local(task: Task, split: str, names: tuple[str, ...], data: str, folder: Path) -> Path:
    """One split's file as JSON lines: the user's own where it is that already, else converted into `folder`."""
    path = find_data_file(data, names, f"{split} rows of {task.name}", any_name=len(task.data_files) == 1)
    if task.name == "wikitext":
        return _write_rows(folder / f"wikitext-{split}.jsonl", _pages(path))
    rows = read_rows(path)
    return path if path.suffix == ".jsonl" else _write_rows(folder / f"{task.name}-{split}.jsonl", rows)


def _pages(path: Path) -> list[dict[str, Any]]:
    """WikiText documents with the `page` column that lm-eval's task reads: as they are, or made of the running text."""
    if path.suffix == ".txt":
        text = path.read_text(encoding="utf-8-sig")
    else:
        rows = read_rows(path)
        if all("page" in row for row in rows):
            return rows
        if not all("text" in row for row in rows):
            why = "wikitext is scored document by document"
            fix = "give WikiText as a .txt file, or rows with a `page` column"
            raise DataError(f"{path} has neither a `page` nor a `text` column", why, fix)
        text = "\n".join(str(row["text"]).rstrip("\n") for row in rows)  # the line-wise form of the hub
    return [{"page": page} for page in split_wikitext(text)]


_TITLE = re.compile(r"^ ?= (?!= ).*(?<! =) = ?$")


def split_wikitext(text: str) -> list[str]:
    """The documents of a WikiText file: each begins at a top-level heading (` = Title = `) between blank lines.

    The blank lines tell headings from formulas that look like them. Text without any heading is one document.
    """
    lines = text.split("\n")
    blank = [not line.strip() for line in lines] + [True]
    starts = [i for i, line in enumerate(lines) if _TITLE.match(line) and blank[i + 1] and (i == 0 or blank[i - 1])]
    pages = ["\n".join(lines[start:end]) for start, end in zip([0, *starts], [*starts, len(lines)], strict=True)]
    return [page.strip("\n") for page in pages if page.strip()]


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def _with_digest(source: str, files: dict[str, Path]) -> TaskFiles:
    """Two evaluations with equal digests read the same rows."""
    whole = hashlib.sha256("".join(f"{split}:{file_sha256(path)}" for split, path in sorted(files.items())).encode())
    return TaskFiles({split: str(path) for split, path in files.items()}, f"{source}:{whole.hexdigest()[:12]}")


def find_sentence_splitter(context: Context) -> str:
    """Which sentence splitter IFEval has, in words; NLTK finds it in this process from then on.

    Looked for where NLTK_DATA says, in `nltk/` of the data folder and in NLTK's own places; else made in the workspace.
    """
    import nltk

    folder = _cache(context) / "nltk"
    places = [*os.environ.get("NLTK_DATA", "").split(os.pathsep), context.data and f"{context.data}/nltk", str(folder)]
    nltk.data.path[:0] = filter(None, places)  # NLTK reads nowhere else
    try:
        found = nltk.data.find("tokenizers/punkt_tab/english/")
    except LookupError:
        return sentence_splitter(folder, offline=context.offline)
    return OURS if Path(found, TRAINED).exists() else NLTKS


def sentence_splitter(folder: Path, *, offline: bool) -> str:
    """Makes NLTK data with a sentence splitter in `folder`; says in words which one it is.

    NLTK's own if it can be had, else one trained on generated English: whole or not at all, since NLTK takes any folder
    of that name for a splitter.
    """
    import nltk
    from nltk.tokenize.punkt import PunktTrainer, save_punkt_params

    final = folder / "tokenizers" / "punkt_tab" / "english"
    for place in (folder, final.parent):
        place.mkdir(parents=True, exist_ok=True, mode=0o700)  # NLTK writes only where nobody else can
    nltk.data.path.insert(0, str(folder))  # and only below its own folders
    if not offline and nltk.download("punkt_tab", download_dir=str(folder), quiet=True):
        return NLTKS
    text = "\n\n".join(story.text for story in corpus.stories("train", ENGLISH_STORIES))
    with tempfile.TemporaryDirectory(dir=final.parent) as scratch:
        english = Path(scratch) / final.name
        english.mkdir(mode=0o700)
        save_punkt_params(PunktTrainer(text).get_params(), str(english))
        (english / TRAINED).touch()
        english.replace(final)
    return OURS
