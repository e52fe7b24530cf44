"""Which scheme runs where: one table, scheme × hardware, for vLLM 0.32; and what to say when the build does not match.

Sources: vLLM's own kernel lists and `get_min_capability` for what was not run here; measurements for the CPU with
AVX-512 VNNI. Verdicts:

- native: a kernel made for it runs the scheme as the scheme says.
- emulated: the result is right, but the arithmetic is done in a wider format: expect it to be slow.
- weights-only: weights stay small in memory, activations are computed in 16 bits: memory is saved, arithmetic is not.
- no: the engine refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from labkit.errors import Unsupported, UsageError
from labkit.hardware.machine import Build, Gpu, Machine, engine_build, this_machine

Verdict = Literal["native", "emulated", "weights-only", "no"]
SCHEMES = (
    "bf16",
    "int8-w8a8",
    "fp8-w8a8-dynamic",
    "fp8-w8a8-static",
    "fp8-weight-only",
    "fp8-kv-cache",
    "w4a16",
    "w4afp8",
    "nvfp4",
    "mxfp4",
)
HARDWARE = {
    "nvidia-older": "NVIDIA before Turing (below 7.5)",
    "turing": "NVIDIA Turing (7.5)",
    "ampere": "NVIDIA Ampere (8.0, 8.6)",
    "ada": "NVIDIA Ada (8.9)",
    "hopper": "NVIDIA Hopper (9.0)",
    "blackwell-10.0": "NVIDIA Blackwell, data centre (10.0)",
    "blackwell-12.0": "NVIDIA Blackwell, RTX 50 (12.0)",
    "mi300": "AMD MI300",
    "amd-other": "another AMD GPU",
    "cpu-avx2": "x86 CPU with AVX2 only",
    "cpu-avx512": "x86 CPU with AVX-512",
    "cpu-avx512-vnni": "x86 CPU with AVX-512 VNNI",
    "cpu-amx": "x86 CPU with AMX",
    "cpu-other": "a CPU without AVX2",
}


@dataclass(frozen=True)
class Row:
    """One answer of the table, for each pairing of its schemes and its hardware."""

    schemes: tuple[str, ...]
    hardware: tuple[str, ...]
    verdict: Verdict
    reason: str
    alternative: str = ""


@dataclass(frozen=True)
class Capability:
    """The answer for one scheme: reason and alternative are a sentence each; alternative is empty for "native"."""

    scheme: str
    hardware: str  # a key of HARDWARE
    build: Build
    verdict: Verdict
    reason: str
    alternative: str


_FP8_GPU = ("ada", "hopper", "blackwell-10.0", "blackwell-12.0", "mi300")  # FP8 tensor cores
_BLACKWELL = ("blackwell-10.0", "blackwell-12.0")
_NVIDIA = ("turing", "ampere", "ada", "hopper", *_BLACKWELL)
_OLD_CPU = ("cpu-avx2", "cpu-avx512")  # no INT8 or BF16 dot products
_NEW_CPU = ("cpu-avx512-vnni", "cpu-amx")
_CPU = (*_OLD_CPU, *_NEW_CPU)
_WIDE_CPU = ("cpu-avx512", *_NEW_CPU)
_W8A8_FP8 = ("fp8-w8a8-dynamic", "fp8-w8a8-static")

# fmt: off
TABLE: tuple[Row, ...] = (
    Row(("bf16",), (*_NVIDIA[1:], "mi300"), "native", "The GPU's matrix units compute in BF16."),
    Row(("bf16",), ("turing",), "no", "BF16 starts at compute capability 8.0, and vLLM refuses it below.",
        "Use float16 (dtype='float16')."),
    Row(("bf16",), _NEW_CPU, "native",
        "oneDNN computes in BF16, by AVX512_BF16 or AMX instructions where the CPU has them."),
    Row(("bf16",), _OLD_CPU, "emulated", "Weights stay BF16 in memory, the arithmetic converts them to FP32.",
        "INT8 W8A8 reads half the bytes for each token."),

    Row(("int8-w8a8",), ("turing", "ampere", "ada", "hopper"), "native",
        "vLLM's CUTLASS kernels compute INT8 from compute capability 7.5 to 9.0."),
    Row(("int8-w8a8",), _BLACKWELL, "no", "vLLM has no INT8 W8A8 kernel for compute capability 10.0 and up.",
        "Use FP8 W8A8 dynamic, which Blackwell computes natively."),
    Row(("int8-w8a8",), ("mi300",), "native", "vLLM's AITER or Triton kernels compute INT8."),
    Row(("int8-w8a8",), _NEW_CPU, "native",
        "oneDNN computes INT8 with dot-product instructions: faster than BF16, above all in decode."),
    Row(("int8-w8a8",), _OLD_CPU, "emulated", "oneDNN builds INT8 products from wider ones without VNNI.",
        "BF16 is the simpler choice where memory allows it."),

    Row(_W8A8_FP8, _FP8_GPU, "native", "The GPU's matrix units compute in FP8 (compute capability 8.9 and up, MI300)."),
    Row(_W8A8_FP8, ("turing", "ampere"), "weights-only",
        "No FP8 arithmetic below compute capability 8.9: Marlin keeps the weights in FP8 and computes in 16 bits.",
        "INT8 W8A8 computes in 8 bits here."),
    Row(("fp8-w8a8-dynamic",), ("cpu-avx2", "cpu-avx512", "cpu-avx512-vnni"), "emulated",
        "The CPU has no FP8 arithmetic: torch converts and multiplies, correct but slow.",
        "Use INT8 W8A8 for speed."),
    Row(("fp8-w8a8-dynamic",), ("cpu-amx",), "emulated",
        "vLLM's FP8 kernel wants AMX-FP8, which AMX alone is not: torch converts and multiplies, correct but slow.",
        "Use INT8 W8A8 for speed."),
    Row(("fp8-w8a8-static",), ("cpu-avx2", "cpu-avx512", "cpu-avx512-vnni"), "no",
        "vLLM's CPU build lacks the operator static_scaled_fp8_quant.", "Use FP8 W8A8 dynamic, or INT8 W8A8."),
    Row(("fp8-w8a8-static",), ("cpu-amx",), "weights-only",
        "With AMX vLLM keeps the weights in FP8 and computes in BF16 (read in its source, not measured here).",
        "INT8 W8A8 computes in 8 bits here."),

    Row(("fp8-weight-only",), _NVIDIA, "native", "Marlin reads FP8 weights from compute capability 7.5 up."),
    Row(("fp8-weight-only",), ("mi300",), "no", "vLLM lists no FP8 weight-only kernel for ROCm.",
        "Use FP8 W8A8 dynamic, which MI300 computes natively."),
    Row(("fp8-weight-only",), _CPU, "no", "vLLM lists no FP8 weight-only kernel for CPUs.", "Use INT8 W8A8."),

    Row(("fp8-kv-cache",), _FP8_GPU, "native", "The attention kernels read and write an FP8 cache."),
    Row(("fp8-kv-cache",), ("ampere",), "native",
        "FlashInfer stores the cache in FP8 and converts on reading; head size 64, 128, 256 or 512."),
    Row(("fp8-kv-cache",), ("turing",), "no",
        "No attention backend of vLLM takes an FP8 cache here: FlashInfer starts at 8.0, Triton's FP8 at 8.9.",
        "Keep the cache in float16 and shorten the context."),
    Row(("fp8-kv-cache",), _WIDE_CPU, "native",
        "The CPU attention kernel stores the cache in FP8 and converts on reading; head size divisible by 32."),
    Row(("fp8-kv-cache",), ("cpu-avx2",), "no", "The CPU attention kernel needs AVX-512 or AMX for an FP8 cache.",
        "Keep the cache in BF16 and shorten the context."),

    Row(("w4a16",), _NVIDIA, "native", "Marlin (Machete on Hopper) reads packed INT4 weights and computes in 16 bits."),
    Row(("w4a16",), ("mi300",), "native", "vLLM's Triton kernel reads packed INT4 weights and computes in 16 bits."),
    Row(("w4a16",), _WIDE_CPU, "native",
        "vLLM's CPU kernel reads packed INT4 weights and computes in 16 bits; the group size must divide the columns."),
    Row(("w4a16",), ("cpu-avx2",), "no", "vLLM's AVX2 library lacks the operator cpu_gemm_wna16.", "Use INT8 W8A8."),

    Row(("w4afp8",), ("hopper",), "native",
        "vLLM's CUTLASS W4A8 kernel is for compute capability 9.0 exactly, group size 128."),
    Row(("w4afp8",), ("turing", "ampere", "ada", *_BLACKWELL, "mi300"), "no",
        "vLLM's only kernel for INT4 weights with FP8 activations is for compute capability 9.0.",
        "Use W4A16, which keeps the memory and leaves activations in 16 bits."),
    Row(("w4afp8",), _WIDE_CPU, "no", "vLLM has no W4AFP8 kernel for CPUs.",
        "Use W4A16, which keeps the memory and leaves activations in 16 bits."),
    Row(("w4afp8",), ("cpu-avx2",), "no", "vLLM has no W4AFP8 kernel for CPUs.", "Use INT8 W8A8."),

    Row(("nvfp4", "mxfp4"), _BLACKWELL, "native", "Blackwell's matrix units compute in FP4."),
    Row(("nvfp4",), ("turing",), "weights-only",
        "No FP4 arithmetic below compute capability 10.0: Marlin keeps the weights in FP4 and computes in 16 bits.",
        "W4A16 does the same with INT4 weights."),
    Row(("mxfp4",), ("turing",), "no", "vLLM loads MXFP4 from compute capability 8.0 up.", "Use W4A16."),
    Row(("nvfp4", "mxfp4"), ("ampere", "ada", "hopper"), "weights-only",
        "No FP4 arithmetic below compute capability 10.0: Marlin keeps the weights in FP4 and computes in 16 bits.",
        "W4A16 does the same with INT4 weights."),
    Row(("nvfp4",), ("mi300",), "emulated", "MI300 has no FP4 arithmetic: vLLM dequantizes at each step.", "Use W4A16."),
    Row(("mxfp4",), ("mi300",), "emulated",
        "MI300 has no FP4 arithmetic: vLLM dequantizes at each step, with the amd-quark package.", "Use W4A16."),
    Row(("nvfp4", "mxfp4"), _WIDE_CPU, "no", "vLLM has no FP4 kernel for CPUs.", "Use W4A16."),
    Row(("nvfp4", "mxfp4"), ("cpu-avx2",), "no", "vLLM has no FP4 kernel for CPUs.", "Use INT8 W8A8."),

    Row(SCHEMES, ("nvidia-older",), "no", "vLLM's quantized kernels start at compute capability 7.5.",
        "Use the CPU build: make labs LOCK=cpu."),
    Row(SCHEMES, ("amd-other",), "no", "Of AMD's GPUs this table knows the MI300 series only.",
        "Use the CPU build: make labs LOCK=cpu."),
    Row(SCHEMES, ("cpu-other",), "no", "vLLM's CPU build needs an x86-64 processor with AVX2.",
        "Run the labs on an x86-64 machine with AVX2, or on a workbench."),
)
# fmt: on

# (scheme, hardware) -> its row; a pair that stands twice keeps the last, which a test forbids.
_ROWS = {(scheme, hardware): row for row in TABLE for scheme in row.schemes for hardware in row.hardware}


def _own_build(hardware: str) -> Build:
    """The vLLM build that uses this hardware."""
    if hardware.startswith("cpu-"):
        return "cpu"
    return "rocm" if hardware in ("mi300", "amd-other") else "cuda"


def judge(scheme: str, hardware: str, build: Build) -> Capability:
    """The answer for any scheme of SCHEMES, key of HARDWARE and build: exactly one. Raises UsageError for other names."""
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
        alternative = "Use the CPU build: make labs LOCK=cpu."
    elif build == "cpu":
        reason = "vLLM's CPU build is installed, and it does not use the GPU."
        alternative = "Use the GPU build: make labs LOCK=gpu."
    else:
        reason = f"vLLM's {build} build is installed, and this GPU needs the {own} build."
        alternative = f"Point LABKIT_ENGINE_PYTHON to an environment with vLLM's {own} build."
    return Capability(scheme, hardware, build, "no", reason, alternative)


def cpu_class(features: frozenset[str]) -> str:
    """The HARDWARE key of a processor."""
    for feature, key in (("amx", "cpu-amx"), ("avx512_vnni", "cpu-avx512-vnni"), ("avx512f", "cpu-avx512")):
        if feature in features and "avx512f" in features:
            return key
    return "cpu-avx2" if "avx2" in features else "cpu-other"


def gpu_class(gpu: Gpu) -> str:
    """The HARDWARE key of a GPU; a compute capability between two listed ones counts as the lower."""
    if gpu.vendor == "amd":
        return "mi300" if "gfx942" in gpu.name or "MI300" in gpu.name else "amd-other"
    starts = {
        (12, 0): "blackwell-12.0",
        (10, 0): "blackwell-10.0",
        (9, 0): "hopper",
        (8, 9): "ada",
        (8, 0): "ampere",
        (7, 5): "turing",
    }
    return next((key for start, key in starts.items() if (gpu.compute_capability or (0, 0)) >= start), "nvidia-older")


def capability(scheme: str, machine: Machine | None = None, build: Build | None = None) -> Capability:
    """What a scheme meets on a machine (default: this one) with an engine build (default: the installed one).

    The CPU build runs on the processor even where there is a GPU: the answer is the processor's, and says so. Of several
    GPUs the first that the build can use counts, as it does for vLLM.
    """
    machine, build = machine or this_machine(), build or engine_build()
    vendor = {"cuda": "nvidia", "rocm": "amd"}.get(build)
    usable = [gpu for gpu in machine.gpus if vendor in (None, gpu.vendor)] or list(machine.gpus)
    if not usable or build == "cpu":
        found = judge(scheme, cpu_class(machine.features), build)
        if machine.gpus:
            found = replace(
                found,
                reason=f"On the CPU, as vLLM's CPU build leaves the GPU unused: {found.reason}",
                alternative=f"{found.alternative} With the GPU: make labs LOCK=gpu.".strip(),
            )
        return found
    return judge(scheme, gpu_class(usable[0]), build)


def require(scheme: str) -> Capability:
    """The answer for this machine if it is anything but "no"; raises Unsupported with the row's reason and alternative."""
    found = capability(scheme)
    if found.verdict == "no":
        raise Unsupported(
            f"{scheme} does not run here: {found.reason}",
            why=f"the engine is vLLM's {found.build} build on {HARDWARE[found.hardware]}",
            fix=found.alternative,
        )
    return found
