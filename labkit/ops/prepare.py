"""What a run is asked for, and whether it can be: every wrong use is found here, before anything runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labkit.errors import UsageError
from labkit.ops.notebooks import Lab, find_labs, find_notebooks, parse_parameters
from labkit.ops.plan import has_results, select_labs, with_needed
from labkit.profiles import EMBEDDED, Parameters, Profile, get_profile
from labkit.transfer import is_address
from labkit.workspace import Workspace, find_workspace

DEFAULT_TIMEOUT_SECONDS = 2 * 3600.0  # for one whole lab: a 7B model's longest lab with room to spare


@dataclass(frozen=True)
class Request:
    """What `labkit run` was asked for; empty means the environment variable, else the default."""

    labs: tuple[str, ...] = ()
    profile: str = ""
    workspace: str = ""
    output: str = ""
    jobs: int = 1
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS
    parameters: tuple[tuple[str, str], ...] = ()
    only_changed: bool = False


@dataclass(frozen=True)
class Prepared:
    """A request that was found sound: `labs` in order, with those added that they need. Nothing is written yet.

    known: all labs of the folder. inputs: model and data as the labs will find them, environment variables counted in.
    """

    labs: tuple[Lab, ...]
    profile: Profile
    workspace: Workspace
    output: Path | None
    jobs: int
    timeout_seconds: float
    parameters: Mapping[str, Any]
    known: tuple[Lab, ...]
    inputs: Parameters
    only_changed: bool = False


def prepare(request: Request, notebooks: Path | None = None) -> Prepared:
    """Checks a request against the labs of a folder; raises UsageError for anything that can't be as asked."""
    if request.jobs < 1:
        raise UsageError(f"jobs is {request.jobs}", fix="give the number of labs to run at once, 1 or more")
    if request.jobs > 1:
        from labkit.hardware import this_machine

        refuse_shared_gpu(request.jobs, len(this_machine().gpus))
    if not request.timeout_seconds > 0:
        raise UsageError(f"timeout is {request.timeout_seconds}", fix="give the seconds that one lab may take")
    folder = notebooks or find_notebooks()
    labs = find_labs(folder)
    chosen = select_labs(labs, request.labs)
    pairs = [pair for pair in request.parameters if pair[0] not in ("profile", "workspace")]
    profile = get_profile(_single("profile", request.profile, request.parameters))
    workspace = Workspace(find_workspace(_single("workspace", request.workspace, request.parameters), folder))
    workspace.require_writable()
    parse_parameters(labs, pairs)  # a name that no lab knows, or a wrong value, before the plan depends on it
    given = dict(pairs)
    model = absolute(given.get("model", "") or os.environ.get("LABKIT_MODEL", ""))
    plan = with_needed(labs, chosen, lambda lab: has_results(lab, workspace, profile, model))
    values = parse_parameters(plan, pairs)
    named = Parameters(**{name: values[name] for name in ("model", "data", "limit") if name in values}).resolved()
    if named.data and not is_address(named.data) and not Path(named.data).expanduser().is_dir():
        raise UsageError(f"data is {named.data!r}, which is no folder", fix="give the folder that holds the data files")
    values.update({name: absolute(values[name]) for name in ("model", "data") if values.get(name)})
    if values.get("target"):
        values["target"] = absolute_target(values["target"])
    output = Path(request.output).expanduser().absolute() if request.output else None
    if output and output.exists() and not output.is_dir():
        raise UsageError(f"the output {output} is not a folder", fix="name a folder, or one that does not exist yet")
    inputs = replace(named, model=absolute(named.model), data=absolute(named.data))
    return Prepared(
        plan,
        profile,
        workspace,
        output,
        request.jobs,
        request.timeout_seconds,
        values,
        tuple(labs),
        inputs,
        request.only_changed,
    )


def refuse_shared_gpu(jobs: int, gpus: int) -> None:
    """Raises UsageError if labs would run side by side on a GPU: each engine takes nearly all of its memory."""
    if jobs > 1 and gpus:
        raise UsageError(
            f"jobs is {jobs} on a machine with {gpus} GPU{'s' if gpus > 1 else ''}",
            why="an engine takes nearly all of a GPU's memory, so two labs at once would fail",
            fix="leave out --jobs here; --only-changed saves time, too",
        )


def _single(name: str, option: str, pairs: Sequence[tuple[str, str]]) -> str:
    """`--profile X` and `-p profile X` mean the same; raises UsageError when they disagree."""
    values = {value for value in [option, *(text for key, text in pairs if key == name)] if value}
    if len(values) > 1:
        raise UsageError(f"{name} is given twice: {', '.join(sorted(values))}", fix="give it once")
    return values.pop() if values else ""


def absolute(value: str) -> str:
    """A relative path that exists from here, as one that also means the same in the labs' folder."""
    if value in ("", EMBEDDED) or is_address(value):
        return value
    path = Path(value).expanduser()
    return str(path.absolute()) if path.exists() else value


def absolute_target(value: str) -> str:
    """A place to publish to: an address as it is, a folder (it need not exist yet) counted from here."""
    return value if is_address(value) else str(Path(value).expanduser().absolute())
