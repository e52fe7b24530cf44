"""Rows of a hub data set, with one kind of error for whatever the hub's client raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.errors import DataError, first_line

if TYPE_CHECKING:
    from datasets import Dataset


def hub_rows(source: str, split: str, local_name: str, *, config: str = "", file: str = "") -> Dataset:
    """The rows of a split. config: the data set's configuration; file: of a large set, the one file to read.

    local_name: what a file in a local folder would be called that may stand in its place, for the message. Raises
    DataError if the data set can't be had, or has no rows.
    """
    import datasets

    try:
        rows = datasets.load_dataset(source, config or None, split=split, data_files={split: file} if file else None)
    except Exception as error:  # the hub client raises what its HTTP library, file system or parser does
        raise DataError(
            f"the data set {source} (split {split}) could not be loaded: {type(error).__name__}: {first_line(error)}",
            why="it comes from a hub, which can't be reached from here, or has no such data set",
            fix=f"give a local folder: data = FOLDER with {local_name}.jsonl, .parquet or .txt in it",
        ) from error
    if len(rows) == 0:
        raise DataError(f"the data set {source} has no rows in split {split}", fix="choose another split")
    return rows
