"""Which labs a command means, which others must run before them, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from labkit.errors import UsageError
from labkit.manifest import MANIFEST, read_manifest
from labkit.ops.notebooks import Lab
from labkit.profiles import BASELINE, EMBEDDED, Profile
from labkit.workspace import Workspace


def select_labs(labs: Sequence[Lab], wanted: Sequence[str]) -> tuple[Lab, ...]:
    """The labs that a command line names, by stem (`01_fp8_rtn`) or number (`1`, `01`); all of them if it names none.

    In the labs' own order, each once. Raises UsageError for a name that no lab has.
    """
    if not wanted:
        return tuple(labs)
    names = set()
    for word in wanted:
        stem = word.removesuffix(".ipynb").rsplit("/", 1)[-1]
        found = [lab.name for lab in labs if lab.name == stem or (stem.isdecimal() and int(lab.name[:2]) == int(stem))]
        if not found:
            raise UsageError(f"there is no lab {word!r}", fix=f"choose from: {', '.join(lab.name for lab in labs)}")
        names.update(found)
    return tuple(lab for lab in labs if lab.name in names)


def with_needed(labs: Sequence[Lab], chosen: Sequence[Lab], has_results: Callable[[Lab], bool]) -> tuple[Lab, ...]:
    """`chosen`, and every lab that they need, directly or through another, whose results are not there yet.

    Raises UsageError when labs need each other in a circle.
    """
    by_name = {lab.name: lab for lab in labs}
    included = {lab.name for lab in chosen}

    def visit(lab: Lab, path: tuple[str, ...]) -> None:
        if lab.name in path:
            raise UsageError(
                f"labs need each other in a circle: {' -> '.join([*path, lab.name])}", fix="mend their metadata"
            )
        for name in lab.needs:
            if name in included or not has_results(by_name[name]):
                included.add(name)
                visit(by_name[name], (*path, lab.name))

    for lab in chosen:
        visit(lab, ())
    return tuple(lab for lab in labs if lab.name in included)


def other_model(profile: Profile, model: str) -> str:
    """How checkpoints of `model` are named in the workspace: "" for the profile's own, else its short name."""
    if model in ("", profile.model):
        return ""
    from labkit.checkpoint import short_name

    return short_name(model)


def has_results(lab: Lab, workspace: Workspace, profile: Profile, model: str) -> bool:
    """Whether what `lab` hands to others is in this workspace, for this model.

    That is: all checkpoints that it makes are published and were made from that model; for a lab that makes none, the
    ledger has a headline of it. The baseline does not count: every lab makes it when it needs it.
    """
    made, name = [variant for variant in lab.makes if variant != BASELINE], ledger_model(profile, model)
    if not made:
        return bool(workspace.ledger.headlines(lab=lab.name, model=name))
    folders = [workspace.checkpoint(variant, other_model(profile, model)) for variant in made]
    return all((folder / MANIFEST).is_file() and read_manifest(folder).get("base") == name for folder in folders)


def ledger_model(profile: Profile, model: str) -> str:
    """The model's name in the ledger: `tiny` for the embedded one, else its short name."""
    name = model or profile.model
    if name == EMBEDDED:
        return EMBEDDED
    from labkit.checkpoint import short_name

    return short_name(name)


def values_for(lab: Lab, values: dict[str, Any]) -> dict[str, Any]:
    """Those of the run's parameter values that this lab declares."""
    return {name: value for name, value in values.items() if name in lab.parameters}
