"""The files behind a task: generated rows for the embedded model, lm-eval's data sets, or local files in their place.

A task is always lm-eval's YAML, either the packaged one or labkit's of the same kind. What changes at run time is only
where its rows lie: the child writes a small task file that `include`s the definition and overrides the data set.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.errors import DataError
from labkit.manifest import file_sha256
from labkit.profiles import Task
from labkit.tiny import corpus
from labkit.workspace import write_atomically

DEFINITIONS = Path(__file__).parents[1] / "tiny" / "tasks"
GENERATED = ("tiny_problems", "tiny_stories")
GENERATED_ROWS = 500  # at least, and all there are where a task sets no limit; a smaller limit reads the first of them
FEW_SHOT_ROWS = 200  # what lm-eval draws few-shot examples from


@dataclass(frozen=True)
class TaskFiles:
    """Where a task's definition and rows come from.

    definition: a YAML file of ours, or "" for the one that lm-eval packages. data_files: split to JSONL file; empty for
    the data set that the definition names. data: what to record about the rows, a source with a digest.
    """

    definition: str
    data_files: dict[str, str] = field(default_factory=dict)
    data: str = "hub"


def task_files(task: Task, folder: Path, *, data: str = "", rows: int | None = None, seed: int = 0) -> TaskFiles:
    """Makes a task's rows ready, in `folder` where they are generated or converted.

    data: a local folder that replaces hub data sets; files are matched by `Task.data_files`. rows: how many will be
    scored. Raises DataError when a file is missing, ambiguous or can't be read.
    """
    if task.name in GENERATED:
        return _generated(task, folder, max(rows or 0, GENERATED_ROWS), seed)
    if not data:
        return TaskFiles("")
    if not task.data_files:
        raise DataError(
            f"task {task.name} names no local files",
            why=f"data is {data!r}, so nothing may come from the hub",
            fix="give the task `data_files`, or leave data empty",
        )
    converted = folder / hashlib.sha256(str(Path(data).absolute()).encode()).hexdigest()[:8]
    files = {split: _local(task, split, names, data, converted) for split, names in task.data_files.items()}
    return TaskFiles("", {split: str(path) for split, path in files.items()}, _digest("local", files))


def hub_source(task: str) -> tuple[str, str]:
    """The hub data set that lm-eval's packaged task reads, and its configuration ("" for none)."""
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    definition = load_yaml(Path(lm_eval.__file__).parent / "tasks" / task / f"{task}.yaml", resolve_func=False)
    return str(definition["dataset_path"]), str(definition.get("dataset_name") or "")


def _generated(task: Task, folder: Path, rows: int, seed: int) -> TaskFiles:
    """Test rows, and for problems training rows to draw few-shot examples from, as labkit.tiny.corpus makes them."""
    splits: dict[str, list[dict[str, Any]]]
    if task.name == "tiny_stories":
        splits = {"test": [{"text": story.text} for story in corpus.stories("test", rows, seed)]}
    else:
        test, train = corpus.problems("test", rows, seed), corpus.problems("train", FEW_SHOT_ROWS, seed)
        splits = {
            split: [{"question": problem.question, "answer": problem.answer} for problem in problems]
            for split, problems in (("test", test), ("train", train))
        }
    files = {
        split: _write_rows(folder / f"{task.name}-{split}-{rows}-{seed}.jsonl", found)
        for split, found in splits.items()
    }
    return TaskFiles(
        str(DEFINITIONS / f"{task.name}.yaml"), {s: str(p) for s, p in files.items()}, _digest("generated", files)
    )


def _local(task: Task, split: str, names: tuple[str, ...], data: str, folder: Path) -> Path:
    """One split's file as JSON lines: the user's own where it is that already, else converted into `folder`."""
    from labkit.localdata import find_data_file, read_rows

    path = find_data_file(data, names, f"{split} rows of {task.name}", any_name=len(task.data_files) == 1)
    if task.name == "wikitext":
        return _write_rows(folder / f"wikitext-{split}.jsonl", _pages(path))
    rows = read_rows(path)
    if path.suffix == ".jsonl":
        return path
    return _write_rows(folder / f"{task.name}-{split}.jsonl", rows)


def _pages(path: Path) -> list[dict[str, Any]]:
    """WikiText documents with the `page` column that lm-eval's task reads: as they are, or made of the running text."""
    from labkit.localdata import read_rows

    if path.suffix == ".txt":
        return [{"page": page} for page in split_wikitext(path.read_text(encoding="utf-8-sig"))]
    rows = read_rows(path)
    if all("page" in row for row in rows):
        return rows
    if all("text" in row for row in rows):  # the line-wise form of the hub
        text = "\n".join(str(row["text"]).rstrip("\n") for row in rows)
        return [{"page": page} for page in split_wikitext(text)]
    raise DataError(
        f"{path} has neither a `page` nor a `text` column",
        why="wikitext is scored document by document",
        fix="give WikiText as a .txt file, or rows with a `page` column",
    )


_TITLE = re.compile(r"^ ?= (?!= ).*(?<! =) = ?$")


def split_wikitext(text: str) -> list[str]:
    """The documents of a WikiText file: each begins at a top-level heading (` = Title = `) between blank lines.

    The blank lines tell headings from formulas that look like them. Text without any heading is one document.
    """
    lines = text.split("\n")
    blank = [not line.strip() for line in lines] + [True]
    starts = [i for i, line in enumerate(lines) if _TITLE.match(line) and blank[i + 1] and (i == 0 or blank[i - 1])]
    if not starts or any(not b for b in blank[: starts[0]]):
        starts.insert(0, 0)
    ends = [*starts[1:], len(lines)]
    pages = ("\n".join(lines[start:end]).strip("\n") for start, end in zip(starts, ends, strict=True))
    return [page for page in pages if page.strip()]


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))
    return path


def _digest(source: str, files: dict[str, Path]) -> str:
    """What was scored, by contents: two evaluations with equal digests read the same rows."""
    whole = hashlib.sha256("".join(f"{split}:{file_sha256(path)}" for split, path in sorted(files.items())).encode())
    return f"{source}:{whole.hexdigest()[:12]}"
