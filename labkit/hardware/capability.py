"""What a scheme meets on a machine: the table's row, or why the installed engine build does not use that hardware."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

from labkit.errors import Unsupported, UsageError
from labkit.hardware.machine import Build, Gpu, Machine, cpu_level, engine_build, this_machine
from labkit.hardware.table import HARDWARE as HARDWARE
from labkit.hardware.table import SCHEMES as SCHEMES
from labkit.hardware.table import TABLE as TABLE
from labkit.hardware.table import Verdict


@dataclass(frozen=True)
class Capability:
    """The answer for one scheme: reason and alternative are a sentence each; "native" may have none."""

    scheme: str
    hardware: str  # a key of HARDWARE
    build: Build
    verdict: Verdict
    reason: str
    alternative: str


_INSTALL: dict[Build, str] = {
    "cpu": "Use the CPU build: make labs LOCK=cpu.",
    "cuda": "Use the GPU build: make labs LOCK=gpu.",
    "rocm": "Point LABKIT_ENGINE_PYTHON to an environment with vLLM's ROCm build.",
}

# AMD's architectures and the lowest compute capability of NVIDIA's that the table has a key for.
_AMD_CLASS = {"gfx942": "mi300", "gfx950": "mi350", "gfx1200": "rdna4", "gfx1201": "rdna4"}
_NVIDIA_CLASS = {
    (12, 0): "blackwell-12.0",
    (10, 0): "blackwell-10.0",
    (9, 0): "hopper",
    (8, 9): "ada",
    (8, 0): "ampere",
    (7, 5): "turing",
}

# (scheme, hardware) -> its row; a pair that stands twice keeps the last, which a test forbids.
_ROWS = {(scheme, hardware): row for row in TABLE for scheme in row.schemes for hardware in row.hardware}


def _own_build(hardware: str) -> Build:
    """The vLLM build that uses this hardware."""
    if hardware.startswith("cpu-"):
        return "cpu"
    return "rocm" if hardware in (*_AMD_CLASS.values(), "amd-other") else "cuda"


def judge(scheme: str, hardware: str, build: Build) -> Capability:
    """The one answer for a scheme, a key of HARDWARE and an engine build. Raises UsageError for a name not listed."""
    for value, known in ((scheme, SCHEMES), (hardware, tuple(HARDWARE)), (build, get_args(Build))):
        if value not in known:
            raise UsageError(f"{value!r} is not in the capability matrix", fix=f"use one of {', '.join(known)}")
    own = _own_build(hardware)
    if build == "none":
        reason, alternative = "No vLLM is installed, so nothing serves it.", "Install a lock: make labs."
    elif build == own:
        row = _ROWS[scheme, hardware]
        return Capability(scheme, hardware, build, row.verdict, row.reason, row.alternative)
    elif own == "cpu":
        reason = f"vLLM's {build} build is installed, and there is no GPU for it."
        alternative = _INSTALL[own]
    elif build == "cpu":
        reason = "vLLM's CPU build is installed, and it does not use the GPU."
        alternative = _INSTALL[own]
    else:
        reason = f"vLLM's {build} build is installed, and this GPU needs the {own} build."
        alternative = _INSTALL[own]
    return Capability(scheme, hardware, build, "no", reason, alternative)


def gpu_class(gpu: Gpu) -> str:
    """The HARDWARE key of a GPU; a compute capability between two listed ones counts as the lower."""
    if gpu.vendor == "amd":
        return next((key for gfx, key in _AMD_CLASS.items() if f"({gfx})" in gpu.name), "amd-other")
    capability = gpu.compute_capability or (0, 0)
    return next((key for start, key in _NVIDIA_CLASS.items() if capability >= start), "nvidia-older")


def capability(scheme: str, machine: Machine | None = None, build: Build | None = None) -> Capability:
    """What a scheme meets on a machine (default: this one) with an engine build (default: the installed one).

    The CPU build runs on the processor even where there is a GPU: the answer is the processor's, and says so.
    """
    machine, build = machine or this_machine(), build or engine_build()
    gpu = machine.gpu_of(build) or next(iter(machine.gpus), None)
    if gpu is not None and build != "cpu":
        return judge(scheme, gpu_class(gpu), build)
    found = judge(scheme, cpu_level(machine.features)[1], build)
    if gpu is None:
        return found
    return replace(
        found,
        reason=f"On the CPU, as vLLM's CPU build leaves the GPU unused: {found.reason}",
        alternative=f"{found.alternative} {_INSTALL[_own_build(gpu_class(gpu))]}".strip(),
    )


def require(scheme: str) -> Capability:
    """This machine's answer, unless that is "no": raises Unsupported with the row's reason and alternative."""
    found = capability(scheme)
    if found.verdict == "no":
        raise Unsupported(
            f"{scheme} does not run here: {found.reason}",
            why=f"the engine is vLLM's {found.build} build on {HARDWARE[found.hardware]}",
            fix=found.alternative,
        )
    return found
