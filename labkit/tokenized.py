"""Calibration rows that were tokenized before: kept in the workspace, found again by what they were made of.

A calibration set is the same whenever its file, the tokenizer, the settings and the libraries are. All of these go into
one key, and the rows are kept under it: the second time neither the tokenizer nor the libraries around it are loaded.
What is read back must have the digest that it was kept with; if it has not, the rows are made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from labkit.calibration import CalibrationSet
from labkit.manifest import MANIFEST, file_sha256
from labkit.workspace import STAGING

LAYOUT = 1  # raise it whenever rows.py or calibration.py make other rows of the same file
LIBRARIES = ("tokenizers", "transformers", "jinja2")
TOKENIZER_FILES = (".json", ".jinja", ".txt", ".model", ".tiktoken")


def key(data: Path, model: Path, **settings: Any) -> str:
    """What decides about the rows, as a SHA-256: a data file, a model folder's tokenizer, settings, versions.

    Every small file of the model folder counts, config.json too: transformers chooses the tokenizer's class by it.
    """
    tokenizer = [p for p in sorted(model.iterdir()) if p.suffix in TOKENIZER_FILES and p.name != MANIFEST]
    made_of = {
        "layout": LAYOUT,
        "data": [data.name, file_sha256(data)],
        "tokenizer": [[path.name, file_sha256(path)] for path in tokenizer if path.is_file()],
        "settings": settings,
        "libraries": {name: version(name) for name in LIBRARIES},
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def once(folder: Path, key: str, make: Callable[[], CalibrationSet]) -> CalibrationSet:
    """The rows kept in `folder` under `key`, or those that `make` makes, which are then kept."""
    path = folder / f"{key}.safetensors"
    if found := _read(path):
        return found
    made = make()
    _keep(path, made)
    return made


def _keep(path: Path, rows: CalibrationSet) -> None:
    import numpy
    from safetensors.numpy import save_file

    flat = array("i", [token for row in rows.input_ids for token in row])
    tensors: dict[str, Any] = {
        "tokens": numpy.frombuffer(flat, numpy.int32),
        "lengths": numpy.array([len(row) for row in rows.input_ids], numpy.int32),
        "texts": numpy.frombuffer(json.dumps(rows.texts).encode(), numpy.uint8),
    }
    facts = {name: value for name, value in asdict(rows).items() if name not in ("input_ids", "texts")}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{STAGING}{os.getpid()}-{path.name}")
    try:
        save_file(tensors, part, {"facts": json.dumps(facts), "sha256": _digest(facts, tensors)})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path) -> CalibrationSet | None:
    """What was kept; None if there is nothing, or something else than what was kept."""
    if not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in ("tokens", "lengths", "texts")}
        facts = json.loads(about["facts"])
        if about["sha256"] != _digest(facts, tensors):
            return None
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    flat, input_ids, start = tensors["tokens"].tolist(), [], 0
    for length in tensors["lengths"].tolist():
        input_ids.append(flat[start : start + length])
        start += length
    facts["columns"] = tuple(facts["columns"])
    texts = tuple(json.loads(tensors["texts"].tobytes()))
    return CalibrationSet(input_ids=input_ids, texts=texts, **facts)


def _digest(facts: dict[str, Any], tensors: dict[str, Any]) -> str:
    names = [field.name for field in fields(CalibrationSet)]  # a set kept by a labkit with other fields is another one
    digest = hashlib.sha256(json.dumps([names, facts], sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(tensors[name].data)
    return digest.hexdigest()
