"""What a lab notebook says about itself: its parameters, the labs it needs, the checkpoints it makes.

Everything here is read from the notebook file; nothing is executed. A notebook's metadata may hold

    "labkit": {"needs": ["01_fp8_rtn"], "makes": ["int8-rtn"], "schemes": ["int8-w8a8"], "alone": false,
               "keeps": [8, 8], "scratch": [16]}

`needs`: labs whose results it reads. `makes`: checkpoint variants it publishes. `schemes`: rows of the capability
matrix without which the whole lab is pointless on a machine (a lab that can leave a part out skips that part itself).
`alone`: whether it measures speed, so that it starts first and beside no other such lab. `keeps`, `scratch`: the bits
of a weight in each copy of the model that it adds to the workspace, for good or until its end; disks are planned by
them.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import UsageError

FIRST_LAB = "00_start_here"
PARAMETERS_TAG = "parameters"
TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Lab:
    """One notebook, as the runner sees it. `parameters` maps each name to its default literal."""

    name: str
    path: Path
    title: str
    needs: tuple[str, ...]
    makes: tuple[str, ...]
    schemes: tuple[str, ...]
    alone: bool
    keeps: tuple[int, ...]
    scratch: tuple[int, ...]
    parameters: Mapping[str, Any]


def find_notebooks(start: Path | None = None) -> Path:
    """The folder of the labs: `notebooks/`, from `start` (the current folder) upwards, else in this checkout.

    Raises UsageError when there is none.
    """
    start = (start or Path.cwd()).absolute()
    for folder in [start, *start.parents, Path(__file__).parents[2]]:
        if (folder / "notebooks" / f"{FIRST_LAB}.ipynb").exists():
            return folder / "notebooks"
    raise UsageError(
        f"there is no notebooks/{FIRST_LAB}.ipynb in {start} or above it",
        why="the labs to run are found from there",
        fix="change into the folder of the curriculum and run the command again",
    )


def find_labs(folder: Path) -> tuple[Lab, ...]:
    """The labs of a folder in their order; raises UsageError for a notebook that can't be read as one."""
    labs = tuple(read_lab(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")))
    known = {lab.name for lab in labs}
    for lab in labs:
        unknown = [name for name in lab.needs if name not in known]
        if unknown:
            raise UsageError(
                f"{lab.path} needs {unknown[0]!r}, which is no lab here", fix=f"use one of: {_list(known)}"
            )
    return labs


def read_lab(path: Path) -> Lab:
    """One notebook's description; raises UsageError when it is not a notebook or its metadata makes no sense."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells, metadata = notebook["cells"], notebook.get("metadata", {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} can't be read as a notebook ({error})", fix="restore it, for example from git"
        ) from error
    about = metadata.get("labkit", {})
    lists = {key: about.get(key, []) for key in ("needs", "makes", "schemes")}
    for key, value in lists.items():
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UsageError(f"{path}: metadata labkit.{key} is {value!r}", fix="write a list of names")
    bits = {key: about.get(key, []) for key in ("keeps", "scratch")}
    for key, value in bits.items():
        if not isinstance(value, list) or not set(value) <= {4, 8, 16}:
            raise UsageError(f"{path}: metadata labkit.{key} is {value!r}", fix="write a list of 4, 8 and 16 (bits)")
    alone = about.get("alone", False)
    if not isinstance(alone, bool):
        raise UsageError(f"{path}: metadata labkit.alone is {alone!r}", fix="write true or false")
    return Lab(
        name=path.stem,
        path=path,
        title=_title(cells) or path.stem,
        needs=tuple(lists["needs"]),
        makes=tuple(lists["makes"]),
        schemes=tuple(lists["schemes"]),
        alone=alone,
        keeps=tuple(bits["keeps"]),
        scratch=tuple(bits["scratch"]),
        parameters=parameters_of(notebook, str(path)),
    )


def parameters_of(notebook: Mapping[str, Any], name: str = "the notebook") -> dict[str, Any]:
    """The names and default literals of a notebook's parameters cell; none if it has no such cell.

    Takes a notebook node of nbformat, or the JSON object of the file. Raises UsageError when there are several such
    cells, or when the cell holds anything but assignments of plain literals.
    """
    cells = [cell for cell in notebook["cells"] if PARAMETERS_TAG in cell.get("metadata", {}).get("tags", [])]
    if not cells:
        return {}
    if len(cells) > 1:
        raise UsageError(f"{name} has {len(cells)} cells tagged {PARAMETERS_TAG!r}", fix="keep one")
    parameters: dict[str, Any] = {}
    try:
        for statement in ast.parse(_source(cells[0])).body:
            if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                target, value = statement.targets[0], statement.value
            elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                target, value = statement.target, statement.value
            else:
                raise ValueError(f"line {statement.lineno} is not `name = literal`")
            if not isinstance(target, ast.Name):
                raise ValueError(f"line {statement.lineno} assigns to more than a name")
            parameters[target.id] = ast.literal_eval(value)
    except (SyntaxError, ValueError) as error:
        raise UsageError(
            f"the parameters cell of {name} can't be read: {error}",
            why="parameters are checked before anything runs",
            fix='keep plain literals there, such as limit = 0 or model = ""; derived values belong in the next cell',
        ) from error
    return parameters


def parse_parameters(labs: Sequence[Lab], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Values typed as the labs' parameters cells type them; each name must be known to one of `labs` at least.

    Raises UsageError for a name that no lab knows, that is given twice, or whose value does not fit.
    """
    values: dict[str, Any] = {}
    for name, text in pairs:
        knowing = [lab for lab in labs if name in lab.parameters]
        if not knowing:
            known = sorted({known for lab in labs for known in lab.parameters})
            raise UsageError(
                f"no lab of this run has a parameter {name!r}",
                why="a misspelt parameter would be ignored, and the run would not be the one you asked for",
                fix=f"use one of: {_list(known)}" if known else "these labs take no parameters",
            )
        parsed = [parse_value(name, text, lab.parameters[name]) for lab in knowing]
        if name in values and values[name] != parsed[0]:
            raise UsageError(
                f"parameter {name!r} is given twice, as {values[name]!r} and {parsed[0]!r}", fix="give it once"
            )
        values[name] = parsed[0]
    return values


def parse_value(name: str, text: str, default: Any) -> Any:
    """`text` as a value of the type of `default`; raises UsageError when it is none."""
    kind = type(default)
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (str, int, float):
            return kind(text)
        value = ast.literal_eval(text)
        if default is not None and type(value) is not kind:
            raise ValueError
    except (KeyError, ValueError, SyntaxError):
        wanted = TYPE_NAMES.get(kind, f"a Python literal of type {kind.__name__}")
        raise UsageError(
            f"parameter {name!r} can't be {text!r}", why=f"it must be {wanted}", fix=f"its default is {default!r}"
        ) from None
    return value


def last_started_cell(executed: Path) -> str:
    """The cell that a stopped execution was in, for a message; "" if the file does not say.

    For display only: papermill marks cells completed that never ran, so nothing is decided from a saved notebook.
    """
    try:
        cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        return ""
    started = [i for i, cell in enumerate(cells) if cell.get("metadata", {}).get("papermill", {}).get("start_time")]
    return describe_cell(started[-1], _source(cells[started[-1]])) if started else ""


def describe_cell(index: int, source: str) -> str:
    """A cell for a message: its number from 1 and its first line of code."""
    lines = [line.strip() for line in source.splitlines() if line.strip() and not line.strip().startswith(("#", "%"))]
    return f"cell {index + 1}" + (f" ({lines[0][:80]})" if lines else "")


def _source(cell: Mapping[str, Any]) -> str:
    source = cell.get("source", "")
    return source if isinstance(source, str) else "".join(source)


def _title(cells: Sequence[Mapping[str, Any]]) -> str:
    for cell in cells:
        if cell.get("cell_type") == "markdown":
            for line in _source(cell).splitlines():
                if line.startswith("# "):
                    return line[2:].strip()
    return ""


def _list(names: Any) -> str:
    return ", ".join(sorted(names))
