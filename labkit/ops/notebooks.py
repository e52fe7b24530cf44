"""The labs: what a notebook says about itself, and what a run of some of them is asked for, checked before it begins.

Everything is read from the notebook file; nothing is executed. A notebook's metadata may hold

    "labkit": {"needs": ["01_fp8_rtn"], "makes": ["int8-rtn"], "schemes": ["int8-w8a8"], "alone": false,
               "keeps": [8, 8], "scratch": [16]}

`needs`: earlier labs whose results it reads. `makes`: checkpoint variants it publishes. `schemes`: rows of the
capability matrix without which the whole lab is pointless on a machine (a lab that can leave a part out skips that part
itself). `alone`: whether it measures speed, so that no other lab runs beside it. `keeps`, `scratch`: the bits of a
weight in each copy of the model that it adds to the workspace, for good or until its end; disks are planned by them.
"""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import UsageError
from labkit.files import MANIFEST, read_manifest
from labkit.hardware import this_machine
from labkit.profiles import BASELINE, EMBEDDED, Parameters, Profile, get_profile
from labkit.store import Workspace, find_workspace
from labkit.transfer import is_address

FIRST_LAB = "00_start_here"
PARAMETERS_TAG = "parameters"
TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
LAB_SECONDS = 2 * 3600.0  # the longest that one lab may take: a 7B model's longest lab with room to spare


@dataclass(frozen=True, eq=False)
class Lab:
    """One notebook, as the runner sees it. `parameters` maps each name to its default literal."""

    name: str
    path: Path
    title: str
    parameters: Mapping[str, Any]
    needs: tuple[str, ...]
    makes: tuple[str, ...]
    schemes: tuple[str, ...]
    alone: bool
    keeps: tuple[int, ...]
    scratch: tuple[int, ...]


def find_notebooks(start: Path | None = None) -> Path:
    """The folder of the labs: `notebooks/`, from `start` (the current folder) upwards, else in this checkout."""
    start = (start or Path.cwd()).absolute()
    for folder in [start, *start.parents, Path(__file__).parents[2]]:
        if (folder / "notebooks" / f"{FIRST_LAB}.ipynb").exists():
            return folder / "notebooks"
    fix = "change into the folder of the curriculum and run the command again"
    raise UsageError(f"there is no notebooks/{FIRST_LAB}.ipynb in {start} or above it", fix=fix)


def find_labs(folder: Path) -> tuple[Lab, ...]:
    """The labs of a folder in their order; raises UsageError for a notebook that can't be read as one."""
    labs: list[Lab] = []
    for lab in map(read_lab, sorted(folder.glob("[0-9][0-9]_*.ipynb"))):
        if unknown := set(lab.needs) - {earlier.name for earlier in labs}:
            what = f"{lab.path} needs {sorted(unknown)[0]!r}, which is no lab before it"
            raise UsageError(what, fix="write the names of earlier labs")
        labs.append(lab)
    return tuple(labs)


def read_lab(path: Path) -> Lab:
    """One notebook's description; raises UsageError when it is not a notebook or its metadata makes no sense."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        about = notebook.get("metadata", {}).get("labkit", {})
        prose = "\n".join(source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} can't be read as a notebook ({error})", fix="restore it, say from git") from error

    def listed(key: str) -> tuple[Any, ...]:
        value, bits = about.get(key, []), key in ("keeps", "scratch")
        fits = isinstance(value, list) and all(each in (4, 8, 16) if bits else isinstance(each, str) for each in value)
        if not fits:
            fix = f"write a list of {'4, 8 and 16 (bits)' if bits else 'names'}"
            raise UsageError(f"{path}: metadata labkit.{key} is {value!r}", fix=fix)
        return tuple(value)

    title = next((line[2:].strip() for line in prose.split("\n") if line.startswith("# ")), path.stem)
    lists = {key: listed(key) for key in ("needs", "makes", "schemes", "keeps", "scratch")}
    return Lab(path.stem, path, title, parameters_of(notebook, str(path)), alone=bool(about.get("alone")), **lists)


def source(cell: Mapping[str, Any]) -> str:
    """The text of a cell as a notebook file holds it."""
    return "".join(cell.get("source", ""))


# --- which labs, in which order ---------------------------------------------------------------------------------------


def select_labs(labs: Sequence[Lab], wanted: Sequence[str]) -> tuple[Lab, ...]:
    """The labs that a command line names, by stem (`01_fp8_rtn`) or number (`1`, `01`); all of them if it names none.

    In the labs' own order, each once. Raises UsageError for a name that no lab has.
    """
    found: list[Lab] = []
    for word in wanted:
        stem = word.removesuffix(".ipynb").rsplit("/", 1)[-1]
        meant = [lab for lab in labs if stem in (lab.name, lab.name[:2], str(int(lab.name[:2])))]
        if not meant:
            raise UsageError(f"there is no lab {word!r}", fix=f"choose from: {', '.join(lab.name for lab in labs)}")
        found += meant
    return tuple(lab for lab in labs if lab in found or not wanted)


def has_results(lab: Lab, workspace: Workspace, profile: Profile, model: str) -> bool:
    """Whether all checkpoints that `lab` makes are published here and were made from this model.

    For a lab that makes none: whether the ledger has a headline of it. The baseline does not count, as every lab makes
    it.
    """
    from labkit.checkpoint import short_name

    name = model or profile.model
    name = name if name == EMBEDDED else short_name(name)  # as the ledger spells it
    made = [variant for variant in lab.makes if variant != BASELINE]
    if not made:
        return bool(workspace.ledger.headlines(lab=lab.name, model=name))
    folders = [workspace.checkpoint(variant, other_model(profile, model)) for variant in made]
    return all((folder / MANIFEST).is_file() and read_manifest(folder).get("base") == name for folder in folders)


def other_model(profile: Profile, model: str) -> str:
    """How checkpoints of `model` are named in the workspace: "" for the profile's own, else its short name."""
    from labkit.checkpoint import short_name

    return "" if model in ("", profile.model) else short_name(model)


# --- parameters -------------------------------------------------------------------------------------------------------


def parameters_of(notebook: Mapping[str, Any], name: str = "the notebook") -> dict[str, Any]:
    """The names and default literals of a notebook's parameters cell; none if it has no such cell.

    Raises UsageError when there are several, or when it holds anything but assignments of plain literals.
    """
    cells = [cell for cell in notebook["cells"] if PARAMETERS_TAG in cell.get("metadata", {}).get("tags", [])]
    if len(cells) > 1:
        raise UsageError(f"{name} has {len(cells)} cells tagged {PARAMETERS_TAG!r}", fix="keep one")
    parameters: dict[str, Any] = {}
    try:
        for statement in ast.parse("".join(map(source, cells))).body:
            match statement:
                case ast.Assign([ast.Name(target)], value) | ast.AnnAssign(ast.Name(target), _, ast.expr() as value):
                    parameters[target] = ast.literal_eval(value)
                case _:
                    raise ValueError(f"line {statement.lineno} is not `name = literal`")
    except (SyntaxError, ValueError) as error:
        what = f"the parameters cell of {name} can't be read: {error}"
        fix = 'keep plain literals there, such as limit = 0 or model = ""; derived values belong in the next cell'
        raise UsageError(what, "parameters are checked before anything runs", fix) from error
    return parameters


def parse_parameters(labs: Sequence[Lab], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Values typed as the labs' parameters cells type them.

    Raises UsageError for a name that none of `labs` knows, that is given twice, or whose value does not fit.
    """
    values: dict[str, Any] = {}
    for name, text in pairs:
        defaults = [lab.parameters[name] for lab in labs if name in lab.parameters]
        if not defaults:
            known = sorted({known for lab in labs for known in lab.parameters})
            why = "a misspelt parameter would be ignored, and the run would not be the one you asked for"
            raise UsageError(f"no lab of this run has a parameter {name!r}", why, f"use one of: {', '.join(known)}")
        value, *_ = [parse_value(name, text, default) for default in defaults]
        if values.setdefault(name, value) != value:
            what = f"parameter {name!r} is given twice, as {values[name]!r} and {value!r}"
            raise UsageError(what, fix="give it once")
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
        if default is None or type(value) is kind:
            return value
    except (KeyError, ValueError, SyntaxError):
        pass
    why = f"it must be {TYPE_NAMES.get(kind, f'a Python literal of type {kind.__name__}')}"
    raise UsageError(f"parameter {name!r} can't be {text!r}", why, fix=f"its default is {default!r}")


# --- a run ------------------------------------------------------------------------------------------------------------


class Plan:
    """What a run will do: `labs` in order, with those added that they need, and all `known` ones of their folder.

    Made of what `labkit run` is asked for, where empty means the environment variable, else the default. Raises
    UsageError for anything that can't be as asked; writes nothing.
    """

    def __init__(
        self,
        labs: Sequence[str] = (),
        profile: str = "",
        workspace: str = "",
        parameters: Sequence[tuple[str, str]] = (),
        output: str = "",
        jobs: int = 1,
        timeout_seconds: float = LAB_SECONDS,
        only_changed: bool = False,
        folder: Path | None = None,
    ) -> None:
        refuse_shared_gpu(jobs, len(this_machine().gpus))
        self.jobs, self.timeout_seconds, self.only_changed = jobs, timeout_seconds, only_changed
        folder = folder or find_notebooks()
        self.known = find_labs(folder)
        chosen = select_labs(self.known, labs)
        self.profile = get_profile(_single("profile", profile, parameters))
        self.workspace = Workspace(find_workspace(_single("workspace", workspace, parameters), folder))
        self.workspace.require_writable()
        pairs = [pair for pair in parameters if pair[0] not in ("profile", "workspace")]
        self.labs = self._with_needed(chosen, absolute(dict(pairs).get("model") or os.environ.get("LABKIT_MODEL", "")))
        values = parse_parameters(self.labs, pairs)
        named = {name: values[name] for name in ("model", "data", "target", "limit") if name in values}
        found = Parameters(**named).resolved()
        if found.data and not is_address(found.data) and not Path(found.data).expanduser().is_dir():
            raise UsageError(f"data is {found.data!r}, which is no folder", fix="give the folder of the data files")
        inputs = {"model": absolute(found.model)}
        inputs |= {name: absolute(getattr(found, name), folder=True) for name in ("data", "target")}
        self.parameters = values | {name: value for name, value in inputs.items() if value}
        self.output = Path(output).expanduser().absolute() if output else None
        if self.output and self.output.exists() and not self.output.is_dir():
            fix = "name another, or one that is not there yet"
            raise UsageError(f"the output {self.output} is not a folder", fix=fix)

    def _with_needed(self, chosen: Sequence[Lab], model: str) -> tuple[Lab, ...]:
        """`chosen`, and every lab that they need, directly or through another, whose results are not there yet."""
        included = {lab.name for lab in chosen}
        for lab in reversed(self.known):  # a lab needs earlier ones only
            if lab.name in included:
                needed = [other for other in self.known if other.name in lab.needs]
                included |= {n.name for n in needed if not has_results(n, self.workspace, self.profile, model)}
        return tuple(lab for lab in self.known if lab.name in included)

    def values_for(self, lab: Lab) -> dict[str, Any]:
        """What a lab's parameters are set to."""
        everywhere = {"profile": self.profile.name, "workspace": str(self.workspace.root)}
        return {name: value for name, value in {**everywhere, **self.parameters}.items() if name in lab.parameters}


def refuse_shared_gpu(jobs: int, gpus: int) -> None:
    """Raises UsageError if labs would run side by side on a GPU."""
    if jobs > 1 and gpus:
        what = f"jobs is {jobs} on a machine with {gpus} GPU{'s' * (gpus > 1)}"
        why = "an engine takes nearly all of a GPU's memory, so two labs at once would fail"
        raise UsageError(what, why, "leave out --jobs here; --only-changed saves time, too")


def _single(name: str, option: str, pairs: Sequence[tuple[str, str]]) -> str:
    """`--profile X` and `-p profile X` mean the same; raises UsageError when they disagree."""
    values = {option, *(text for key, text in pairs if key == name)} - {""}
    if len(values) > 1:
        raise UsageError(f"{name} is given twice: {', '.join(sorted(values))}", fix="give it once")
    return "".join(values)


def absolute(value: str, *, folder: bool = False) -> str:
    """A relative path as one that means the same in the labs' folder; names and addresses stay as they are.

    folder: it is a path, whether it exists yet or not; else what does not exist is a name.
    """
    if not value or is_address(value) or (value == EMBEDDED and not folder):
        return value
    path = Path(value).expanduser()
    return str(path.absolute()) if folder or path.exists() else value
