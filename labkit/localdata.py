"""Local data files in place of hub data sets: `data = FOLDER`, and what is found in it for which use.

How a file is matched to its use. Each use (the calibration rows, a split of an evaluation task) has a list of names in
its profile, the preferred one first: `("calibration", "ultrachat_200k", "gsm8k_train")`. In the folder itself, not in
folders below it, `NAME.jsonl`, `NAME.parquet` or `NAME.txt` is looked for, and the first name that is there is taken.
The same name with two endings is ambiguous and refused; nothing is ever guessed from a file's contents.

`data` may also be one file. It must then have one of the names too, so that one file can't quietly be both what a model
is calibrated on and what it is judged by; where that can't happen, a caller passes `any_name=True`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labkit.errors import DataError

ENDINGS = (".jsonl", ".parquet", ".txt")


def find_data_file(data: str, names: tuple[str, ...], use: str, *, any_name: bool = False) -> Path:
    """The file of the folder (or the file) `data` that serves `use`, a few words for messages ("calibration rows").

    names: file names without ending, the preferred one first. Raises DataError, listing what was looked for and what
    was found, if nothing or more than one file fits.
    """
    place = Path(data).expanduser().absolute()
    if place.is_file():
        return _single(place, names, use, any_name)
    if not place.is_dir():
        raise DataError(
            f"data is {data!r}, and there is no such file or folder ({place})",
            why=f"the {use} should come from it",
            fix="give an existing folder, or leave data empty to use the hub's data sets",
        )
    for name in names:
        fitting = [place / (name + ending) for ending in ENDINGS if (place / (name + ending)).is_file()]
        if len(fitting) > 1:
            raise DataError(
                f"{place} has more than one file for the {use}: {', '.join(path.name for path in fitting)}",
                why="they may differ, and nothing says which one is meant",
                fix="keep one of them in the folder",
            )
        if fitting:
            return fitting[0]
    found = sorted(path.name for path in place.iterdir() if path.suffix in ENDINGS)
    raise DataError(
        f"{place} has no file for the {use}: looked for {_wanted(names)}, found {', '.join(found) or 'no data file'}",
        why="a local folder replaces the hub, so it must hold all that this lab reads",
        fix="add the file, or rename yours to one of these names",
    )


def _wanted(names: tuple[str, ...]) -> str:
    return " or ".join(names) + f" ({', '.join(ENDINGS)})"


def _single(path: Path, names: tuple[str, ...], use: str, any_name: bool) -> Path:
    if path.suffix not in ENDINGS:
        raise DataError(
            f"{path} can't be read as the {use}: its ending is {path.suffix or 'missing'!r}",
            why="the ending says how a data file is read",
            fix=f"give a file that ends in {', '.join(ENDINGS)}",
        )
    if not any_name and path.stem not in names:
        raise DataError(
            f"{path} is not the {use}: that would be {_wanted(names)}",
            why="one file for every use would judge a model by the rows that it was calibrated on",
            fix="give a folder that holds a file for each use",
        )
    return path


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a data file, each a dict of its columns.

    `.jsonl`: one JSON object a line; blank lines are skipped. `.parquet`: a row a record. `.txt`: a row `{"text": ...}`
    for each paragraph, that is, for lines between blank lines; in a file with no blank line, for each line.

    Raises DataError naming the file, and for `.jsonl` the line, if it can't be read or holds no row.
    """
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".txt": _read_text}
    if path.suffix not in readers:
        raise DataError(f"{path} is not a data file", fix=f"give a file that ends in {', '.join(ENDINGS)}")
    rows = readers[path.suffix](path)
    if not rows:
        raise DataError(f"{path} has no rows", why="it is empty", fix="look at how it was made")
    return rows


def _utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}, in line {line}",
            fix=f"convert it, for example: iconv -f LATIN1 -t UTF-8 {path.name}",
        ) from error
    except OSError as error:
        raise DataError(f"{path} can't be read: {error}", fix="check the path and its permissions") from error


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(_utf8(path).split("\n"), start=1):  # splitlines() would also cut at U+2028 in a text
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number} is not JSON: {error}", fix=f"see it: sed -n {number}p {path}"
            ) from error
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, line {number} is a {type(row).__name__}, not an object",
                why="a row is an object with named columns",
                fix='write {"text": ...} or the like on each line',
            )
        rows.append(row)
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} can't be read as Parquet: {error}", fix="copy or download it again") from error
    return rows


def _read_text(path: Path) -> list[dict[str, Any]]:
    paragraphs: list[list[str]] = [[]]
    lines = _utf8(path).strip("\n").split("\n")
    for line in lines:
        if line.strip():
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    whole = ["\n".join(paragraph).strip() for paragraph in paragraphs if paragraph]
    if all(line.strip() for line in lines):
        whole = [line.strip() for line in lines]
    return [{"text": text} for text in whole]
