"""`labkit doctor`: this machine, what it can do, whether the environment is the locked one, which labs will run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.ops.lock import LockState, lock_state
from labkit.ops.notebooks import Lab
from labkit.ops.outlook import ModelState, Outlook, Resources, common_lacks, model_state, outlooks
from labkit.ops.provision import data_lacks
from labkit.ops.text import size, table
from labkit.pace import expected, rounded_up
from labkit.profiles import Profile
from labkit.transfer import is_address
from labkit.workspace import Workspace

if TYPE_CHECKING:
    from labkit.hardware import Capability, Machine


@dataclass(frozen=True)
class Diagnosis:
    """All that the doctor found. `available_bytes` is the memory that is free now; `capabilities` one row a scheme.

    `in_the_way` is what keeps every lab from running, `labs` what each of them lacks, that included. `about_seconds`:
    what those labs will take here of which that can be estimated.
    """

    machine: Machine
    available_bytes: int
    disk_free_bytes: int
    workspace: str
    engine: str
    versions: dict[str, str]
    capabilities: tuple[Capability, ...]
    lock: LockState
    profile: str
    model: ModelState
    in_the_way: tuple[str, ...]
    labs: tuple[Outlook, ...]
    about_seconds: dict[str, float]

    @property
    def all_labs_run(self) -> bool:
        return all(lab.runs for lab in self.labs)

    def as_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        plain = asdict(self)
        plain["machine"] |= {"label": self.machine.label, "features": sorted(self.machine.features)}
        plain["lock"] |= {"equal": self.lock.equal}
        return {**plain, "all_labs_run": self.all_labs_run}


def diagnose(labs: Sequence[Lab], profile: Profile, model: str, workspace: Path, data: str = "") -> Diagnosis:
    """Examines this machine for running `labs` with a profile, a model and data; starts no engine, loads no weights."""
    import psutil

    from labkit.hardware import SCHEMES, capability, engine_build, stack_versions, this_machine

    machine, engine = this_machine(), engine_build()
    lock = lock_state("gpu" if engine in ("cuda", "rocm") else "cpu")
    state = model_state(model or profile.model)
    here = Resources(
        disk_free_bytes=shutil.disk_usage(_existing(workspace)).free,
        memory_bytes=machine.memory_bytes,
        gpu_memory_bytes=max((gpu.memory_bytes for gpu in machine.gpus), default=0),
        engine=engine,
        gpus=len(machine.gpus),
    )
    common = tuple(common_lacks(labs, profile, state, here, lock.missing))
    if data and profile.needs_network:
        common += tuple(data_lacks(profile, data))
    if state.unreachable and profile.needs_network and not is_address(state.name):
        common += (f"where there is a network: labkit fetch --profile {profile.name} FOLDER, and bring that here",)
    return Diagnosis(
        machine=machine,
        available_bytes=psutil.virtual_memory().available,
        disk_free_bytes=here.disk_free_bytes,
        workspace=str(workspace),
        engine=engine,
        versions=stack_versions(),
        capabilities=tuple(capability(scheme) for scheme in SCHEMES),
        lock=lock,
        profile=profile.name,
        model=state,
        in_the_way=common,
        labs=outlooks(labs, common),
        about_seconds={
            lab.name: found.seconds
            for lab in labs
            if (found := expected(Workspace(workspace), lab.name, profile.name, machine.level))
        },
    )


def render(found: Diagnosis) -> str:
    """The diagnosis for the terminal."""
    machine = found.machine
    gpus = ", ".join(
        f"{gpu.name} ({_capability(gpu.compute_capability)}{size(gpu.memory_bytes)})" for gpu in machine.gpus
    )
    features = ", ".join(sorted(machine.features)) or "no vector extensions"
    facts = [
        [
            "CPU",
            f"{machine.cpu}, {machine.cores} cores, {features}",
        ],
        ["GPU", ", ".join(gpus) or "none"],
        ["memory", f"{size(machine.memory_bytes)}, {size(found.available_bytes)} of it free now"],
        ["disk", f"{size(found.disk_free_bytes) or '0 B'} free at {found.workspace}"],
        ["engine", f"vLLM {found.versions.get('vllm', 'not installed')} ({found.engine})"],
        ["versions", ", ".join(f"{name} {version}" for name, version in found.versions.items())],
        ["lock", str(found.lock)],
    ]
    rows = [[row.scheme, row.verdict, _because(row)] for row in found.capabilities]
    labs = []
    for lab in found.labs:
        own = "; ".join(lack for lack in lab.lacks if lack not in found.in_the_way)
        about = found.about_seconds.get(lab.lab)
        labs.append([lab.lab, "yes" if lab.runs else "no", rounded_up(about) if about else "unknown", own])
    known = [found.about_seconds.get(lab.lab) for lab in found.labs if lab.runs]
    together = "unknown"
    if known and all(known):
        together = (
            f"about {rounded_up(sum(filter(None, known)))}, by runs in this workspace or by one elsewhere and a probe"
        )
    width = max(len(name) for name, _ in facts)
    return "\n".join(
        [
            *(f"{name.ljust(width)}  {text}" for name, text in facts),
            "",
            table(["scheme", "here", "why"], rows),
            "",
            f"profile {found.profile}, model {found.model.name}",
            *(f"no lab will run: {lack}" for lack in found.in_the_way),
            table(["lab", "will run", "about", "what is lacking"], labs),
            f"time of all that will run: {together}",
        ]
    )


def _because(row: Capability) -> str:
    instead = f" Instead: {row.alternative}" if row.alternative else ""
    return f"{row.reason}{instead}"


def _capability(value: tuple[int, int] | None) -> str:
    return f"compute capability {value[0]}.{value[1]}, " if value else ""


def _existing(path: Path) -> Path:
    """The path or its nearest parent that is there: a workspace is made when first written to."""
    return next(folder for folder in [path, *path.parents] if folder.exists())
