"""The capability matrix as data: which scheme runs on which hardware, in vLLM 0.32 built for that hardware.

Sources: measurements for the CPUs with AVX-512 VNNI and with AMX; vLLM's own kernel lists and `get_min_capability` for
the rest. Verdicts:

- native: a kernel made for it runs the scheme as the scheme says.
- emulated: the result is right, but the arithmetic is done in a wider format: expect it to be slow.
- weights-only: weights stay small in memory, activations are computed in 16 bits: memory is saved, arithmetic is not.
- no: the engine refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["native", "emulated", "weights-only", "no"]
SCHEMES = (
    "bf16",
    "int8-w8a8",
    "fp8-w8a8-dynamic",
    "fp8-w8a8-static",
    "fp8-w8a8-block",
    "fp8-weight-only",
    "fp8-kv-cache",
    "w4a16",
    "w4afp8",
    "nvfp4",
    "nvfp4a16",
    "mxfp4",
    "mxfp4a16",
    "mxfp8",
)
HARDWARE = {
    "nvidia-older": "NVIDIA before Turing (below 7.5)",
    "turing": "NVIDIA Turing (7.5)",
    "ampere": "NVIDIA Ampere (8.0, 8.6)",
    "ada": "NVIDIA Ada (8.9)",
    "hopper": "NVIDIA Hopper (9.0)",
    "blackwell-10.0": "NVIDIA Blackwell, data center (10.0)",
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


_FP8_GPU = ("ada", "hopper", "blackwell-10.0", "blackwell-12.0", "mi300")  # FP8 tensor cores
_BLACKWELL = ("blackwell-10.0", "blackwell-12.0")
_NVIDIA = ("turing", "ampere", "ada", "hopper", *_BLACKWELL)
_OLD_CPU = ("cpu-avx2", "cpu-avx512")  # no INT8 or BF16 dot products
_NEW_CPU = ("cpu-avx512-vnni", "cpu-amx")
_CPU = (*_OLD_CPU, *_NEW_CPU)
_WIDE_CPU = ("cpu-avx512", *_NEW_CPU)
_FP4 = ("nvfp4", "nvfp4a16", "mxfp4", "mxfp4a16")
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
    Row(("int8-w8a8",), _BLACKWELL, "no",
        "vLLM takes its CUTLASS kernel for INT8 W8A8, which ends with compute capability 9.0.",
        "Use FP8 W8A8 dynamic, which Blackwell computes natively."),
    Row(("int8-w8a8",), ("mi300",), "native", "vLLM's AITER or Triton kernels compute INT8."),
    Row(("int8-w8a8",), _NEW_CPU, "native",
        "oneDNN computes INT8 with dot-product instructions: faster than BF16."),
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
        "vLLM's FP8 kernel wants AMX-FP8; labkit has torch convert and multiply: slow, and by oneDNN, as vLLM would, "
        "slower by far.",
        "Use INT8 W8A8 for speed."),
    Row(("fp8-w8a8-static",), _CPU, "no",
        "vLLM's CPU build lacks the operator static_scaled_fp8_quant.", "Use FP8 W8A8 dynamic, or INT8 W8A8."),

    Row(("fp8-w8a8-block",), _FP8_GPU, "native", "FP8 matrix units, by CUTLASS, DeepGEMM, AITER or Triton kernels."),
    Row(("fp8-w8a8-block",), ("turing", "ampere"), "weights-only",
        "No FP8 arithmetic below compute capability 8.9: Marlin keeps the weights in FP8 and computes in 16 bits.",
        "INT8 W8A8 computes in 8 bits here."),
    Row(("fp8-w8a8-block",), ("cpu-avx2", "cpu-avx512", "cpu-avx512-vnni"), "no",
        "vLLM's block-wise FP8 kernels for CPUs need AMX.", "Use FP8 W8A8 dynamic, or INT8 W8A8."),
    Row(("fp8-w8a8-block",), ("cpu-amx",), "weights-only",
        "With AMX vLLM keeps the weights in FP8 and computes in BF16; layers with a bias, such as Qwen2's, "
        "it refuses.",
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
    Row(("nvfp4",), ("mi300",), "emulated", "MI300 has no FP4 arithmetic: vLLM dequantizes at each step.",
        "Use W4A16."),
    Row(("mxfp4",), ("mi300",), "emulated",
        "MI300 has no FP4 arithmetic: vLLM dequantizes at each step, with the amd-quark package.", "Use W4A16."),
    Row(_FP4, _WIDE_CPU, "no", "vLLM has no FP4 kernel for CPUs.", "Use W4A16."),
    Row(_FP4, ("cpu-avx2",), "no", "vLLM has no FP4 kernel for CPUs.", "Use INT8 W8A8."),

    Row(("nvfp4a16",), _NVIDIA, "native", "Marlin (CuTe on 10.0) reads packed FP4 weights and computes in 16 bits."),
    Row(("nvfp4a16",), ("mi300",), "no", "vLLM lists no weight-only NVFP4 kernel for ROCm.", "Use W4A16."),
    Row(("mxfp4a16",), ("ampere", "ada", "hopper"), "native",
        "Marlin reads packed FP4 weights and computes in 16 bits."),
    Row(("mxfp4a16",), _BLACKWELL, "native",
        "vLLM takes it for MXFP4: where it has an FP4 kernel, it rounds activations too, as this scheme does not."),
    Row(("mxfp4a16",), ("turing",), "no", "vLLM loads MXFP4 from compute capability 8.0 up.", "Use W4A16."),
    Row(("mxfp4a16",), ("mi300",), "emulated",
        "MI300 has no FP4 arithmetic: vLLM dequantizes at each step, with the amd-quark package.", "Use W4A16."),

    Row(("mxfp8",), _BLACKWELL, "native", "Blackwell's matrix units compute in MXFP8."),
    Row(("mxfp8",), ("turing", "ampere", "ada", "hopper"), "weights-only",
        "No MXFP8 arithmetic below compute capability 10.0: Marlin keeps the weights in 8 bits and computes in 16.",
        "FP8 W8A8 dynamic computes in 8 bits from 8.9 up, INT8 W8A8 from 7.5 to 9.0."),
    Row(("mxfp8",), ("mi300",), "emulated", "MI300 has no MXFP8 arithmetic: vLLM dequantizes and computes in BF16.",
        "Use FP8 W8A8 dynamic, which MI300 computes natively."),
    Row(("mxfp8",), _CPU, "no", "vLLM lists no MXFP8 kernel for CPUs.", "Use INT8 W8A8."),

    Row(SCHEMES, ("nvidia-older",), "no", "vLLM's quantized kernels start at compute capability 7.5.",
        "Use the CPU build: make labs LOCK=cpu."),
    Row(SCHEMES, ("amd-other",), "no", "Of AMD's GPUs this table knows the MI300 series only.",
        "Use the CPU build: make labs LOCK=cpu."),
    Row(SCHEMES, ("cpu-other",), "no", "vLLM's CPU build needs an x86-64 processor with AVX2.",
        "Run the labs on an x86-64 machine with AVX2, or on a workbench."),
)
# fmt: on
