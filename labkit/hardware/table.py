"""The capability matrix as data: which scheme runs on which hardware, in vLLM 0.32 built for that hardware.

Each row names its source. Verdicts:

- native: a kernel made for it runs the scheme; where it departs from what the scheme says, the reason says so.
- emulated: the arithmetic is done in another format than the scheme's, or in several steps: most often slow.
- weights-only: weights stay small in memory, activations are computed in 16 bits: memory is saved, arithmetic is not.
- no: the engine refuses it.
- not covered: neither vLLM's source nor a measurement told; the engine may run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["native", "emulated", "weights-only", "no", "not covered"]
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
    "mxfp4afp8",
    "mxfp4a16",
    "mxfp8",
)
HARDWARE = {
    "nvidia-older": "NVIDIA before Turing (below 7.5)",
    "turing": "NVIDIA Turing (7.5)",
    "ampere": "NVIDIA Ampere (8.0 to 8.7)",
    "ada": "NVIDIA Ada (8.9)",
    "hopper": "NVIDIA Hopper (9.0)",
    "blackwell-10.0": "NVIDIA Blackwell, data center (10.0, 10.3) and Thor (11.0)",
    "blackwell-12.0": "NVIDIA Blackwell, RTX 50 (12.0) and DGX Spark (12.1)",
    "mi300": "AMD MI300 (CDNA3, gfx942)",
    "mi350": "AMD MI350 (CDNA4, gfx950)",
    "rdna4": "AMD RDNA4 (gfx1200, gfx1201)",
    "amd-other": "another AMD GPU",
    "cpu-avx2": "x86 CPU with AVX2 only",
    "cpu-avx512": "x86 CPU with AVX-512",
    "cpu-avx512-vnni": "x86 CPU with AVX-512 VNNI",
    "cpu-avx512-bf16": "x86 CPU with AVX512_BF16",
    "cpu-amx": "x86 CPU with AMX",
    "cpu-other": "a CPU without AVX2",
}


@dataclass(frozen=True)
class Row:
    """One answer of the table, for each pairing of its schemes and its hardware.

    source: "FILE: NAME" in vLLM's Python source, several with "; " between; "csrc/FILE" where only the CUDA build has
    it, compiled; "measured: ...".
    """

    schemes: tuple[str, ...]
    hardware: tuple[str, ...]
    verdict: Verdict
    reason: str
    source: str
    alternative: str = ""


_FP8_GPU = ("ada", "hopper", "blackwell-10.0", "blackwell-12.0", "mi300", "mi350", "rdna4")  # FP8 matrix units
_BLACKWELL = ("blackwell-10.0", "blackwell-12.0")
_NVIDIA = ("turing", "ampere", "ada", "hopper", *_BLACKWELL)
_AMD = ("mi300", "mi350", "rdna4")
_NARROW_CPU = ("cpu-avx2", "cpu-avx512", "cpu-avx512-vnni")  # no BF16 products
_CPU = (*_NARROW_CPU, "cpu-avx512-bf16", "cpu-amx")
_WIDE_CPU = _CPU[1:]
_W8A8_FP8 = ("fp8-w8a8-dynamic", "fp8-w8a8-static")

_KERNELS = "model_executor/kernels/linear"
_SCHEME = "model_executor/layers/quantization/compressed_tensors"
_LISTS = f"{_KERNELS}/__init__.py"
_HUMMING = (
    "model_executor/layers/quantization/utils/humming/priority.py: _HUMMING_PREFERRED_CAPABILITIES; "
    "model_executor/layers/quantization/utils/humming/schema.py: check_and_fallback_input_schema"
)
_AS_CPU = "measured: a product at avx2, avx512, vnni and bf16 (as-cpu), 2026-11-29"

# fmt: off
TABLE: tuple[Row, ...] = (
    Row(("bf16",), (*_NVIDIA[1:], *_AMD), "native", "The GPU's matrix units compute in BF16.",
        "platforms/cuda.py: check_if_supports_dtype; platforms/rocm.py: check_if_supports_dtype"),
    Row(("bf16",), ("turing",), "no", "BF16 starts at compute capability 8.0, and vLLM refuses it below.",
        "platforms/cuda.py: check_if_supports_dtype", "Use float16 (dtype='float16')."),
    Row(("bf16",), ("cpu-avx512-bf16", "cpu-amx"), "native", "oneDNN multiplies in BF16 by instructions of its own.",
        f"model_executor/layers/utils.py: dispatch_cpu_unquantized_gemm; {_AS_CPU}"),
    Row(("bf16",), _NARROW_CPU, "emulated",
        "Products are converted to float32 without AVX512_BF16 or AMX: vLLM is faster in float32, which labkit takes.",
        f"model_executor/layers/utils.py: dispatch_cpu_unquantized_gemm; {_AS_CPU}",
        "Where memory matters more LABKIT_DTYPE=bfloat16 has vLLM keep two bytes a weight."),

    Row(("int8-w8a8",), ("turing", "ampere", "ada", "hopper"), "native",
        "vLLM's CUTLASS kernels compute INT8 from compute capability 7.5 to 9.0.",
        f"{_KERNELS}/scaled_mm/cutlass.py: CutlassInt8ScaledMMLinearKernel.is_supported; {_LISTS}: "
        "_POSSIBLE_INT8_KERNELS"),
    Row(("int8-w8a8",), _BLACKWELL, "native",
        "vLLM's Triton kernel computes INT8 where labkit disables CUTLASS's, which vLLM picks and which ends with 9.0.",
        f"{_LISTS}: _POSSIBLE_INT8_KERNELS; {_KERNELS}/scaled_mm/triton.py: TritonInt8ScaledMMLinearKernel; "
        "csrc/libtorch_stable/quantization/w8a8/cutlass/c3x/scaled_mm_helper.hpp: Int8 not supported on SM",
        "Start a vLLM of your own with VLLM_DISABLED_KERNELS=CutlassInt8ScaledMMLinearKernel, or use FP8 W8A8."),
    Row(("int8-w8a8",), _AMD, "native", "vLLM's AITER or Triton kernels compute INT8.",
        f"{_LISTS}: _POSSIBLE_INT8_KERNELS; {_KERNELS}/scaled_mm/aiter.py: AiterInt8ScaledMMLinearKernel.is_supported"),
    Row(("int8-w8a8",), ("cpu-avx512-vnni", "cpu-avx512-bf16", "cpu-amx"), "native",
        "VNNI or AMX instructions compute INT8, by oneDNN or vLLM's own kernel.",
        f"{_KERNELS}/scaled_mm/cpu.py: CPUInt8ScaledMMLinearKernel.process_weights_after_loading; {_AS_CPU}"),
    Row(("int8-w8a8",), ("cpu-avx512",), "emulated",
        "Without VNNI oneDNN takes several instructions, and its sums of extreme products are clipped to 16 bits.",
        f"{_KERNELS}/scaled_mm/cpu.py: CPUInt8ScaledMMLinearKernel.process_weights_after_loading; {_AS_CPU}",
        "Use the base model where memory allows it and exactness matters."),
    Row(("int8-w8a8",), ("cpu-avx2",), "emulated",
        "Without VNNI oneDNN's INT8 is slower than float32, and its sums of extreme products are clipped to 16 bits.",
        f"{_KERNELS}/scaled_mm/cpu.py: CPUInt8ScaledMMLinearKernel.process_weights_after_loading; {_AS_CPU}",
        "Use the base model where memory allows it."),

    Row(_W8A8_FP8, _FP8_GPU, "native",
        "The GPU's matrix units compute in FP8 (compute capability 8.9 and up, CDNA3, CDNA4, RDNA4).",
        f"{_SCHEME}/schemes/compressed_tensors_w8a8_fp8.py: CompressedTensorsW8A8Fp8.get_min_capability; "
        f"{_KERNELS}/scaled_mm/pytorch.py: _rocm_torch_fp8_scaled_mm_supported"),
    Row((*_W8A8_FP8, "fp8-w8a8-block"), ("turing", "ampere"), "weights-only",
        "No FP8 arithmetic below compute capability 8.9: vLLM keeps the weights in FP8 and computes in 16 bits.",
        f"{_SCHEME}/compressed_tensors.py: CompressedTensorsW8A16Fp8; {_LISTS}: _POSSIBLE_WFP8A16_KERNELS",
        "INT8 W8A8 computes in 8 bits here."),
    Row(("fp8-w8a8-dynamic",), _CPU[:-1], "emulated",
        "The CPU has no FP8 arithmetic: torch converts and multiplies, correct but slow.",
        f"{_KERNELS}/scaled_mm/pytorch.py: ChannelWiseTorchFP8ScaledMMLinearKernel; {_AS_CPU}",
        "Use INT8 W8A8 for speed."),
    Row(("fp8-w8a8-dynamic",), ("cpu-amx",), "emulated",
        "vLLM's FP8 kernel wants AMX-FP8; labkit has torch convert and multiply: slow, and by oneDNN, as vLLM would, "
        "slower by far.",
        f"{_KERNELS}/scaled_mm/cpu.py: CPUFP8W8A8ScaledMMLinearKernel.is_supported; measured: a CPU with AMX, 2026-11",
        "Use INT8 W8A8 for speed."),
    Row(("fp8-w8a8-static",), _CPU, "no",
        "vLLM's CPU build only declares static_scaled_fp8_quant, which loading such a checkpoint calls.",
        "model_executor/layers/quantization/utils/w8a8_utils.py: requantize_with_max_scale; "
        "measured: at vnni (as-cpu), 2026-11-29, and a CPU with AMX, 2026-11",
        "Use FP8 W8A8 dynamic, or INT8 W8A8."),

    Row(("fp8-w8a8-block",), _FP8_GPU[1:], "native", "FP8 matrix units, by CUTLASS, DeepGEMM, AITER or Triton kernels.",
        f"{_LISTS}: _POSSIBLE_FP8_BLOCK_KERNELS"),
    Row(("fp8-w8a8-block",), ("ada",), "weights-only",
        "CUTLASS's block-wise FP8 starts at 9.0, and below vLLM prefers Marlin, which computes in 16 bits, to Triton.",
        f"{_LISTS}: _POSSIBLE_FP8_BLOCK_KERNELS; csrc/libtorch_stable/quantization/w8a8/cutlass/scaled_mm_entry.cu: "
        "cutlass_scaled_mm_supports_block_fp8",
        "Use FP8 W8A8 dynamic, which Ada computes natively."),
    Row(("fp8-w8a8-block",), _CPU[:-1], "no", "vLLM's block-wise FP8 kernels for CPUs need AMX.",
        f"{_KERNELS}/scaled_mm/cpu.py: CPUFp8BlockScaledMMKernel.is_supported; measured: at vnni (as-cpu), 2026-11-29",
        "Use FP8 W8A8 dynamic, or INT8 W8A8."),
    Row(("fp8-w8a8-block",), ("cpu-amx",), "weights-only",
        "With AMX vLLM keeps the weights in FP8 and computes in BF16; layers with a bias, such as Qwen2's, "
        "it refuses.",
        f"{_KERNELS}/scaled_mm/cpu.py: CPUFp8BlockScaledMMKernel.apply_weights; measured: a CPU with AMX, 2026-11",
        "INT8 W8A8 computes in 8 bits here."),

    Row(("fp8-weight-only",), _NVIDIA, "native", "Humming reads FP8 weights from 7.5 up and computes in 16 bits.",
        f"{_LISTS}: _POSSIBLE_WFP8A16_KERNELS; {_KERNELS}/scaled_mm/humming.py: "
        "HummingFP8ScaledMMLinearKernel.is_supported"),
    Row(("fp8-weight-only",), _AMD, "no", "vLLM lists no FP8 weight-only kernel for ROCm.",
        f"{_LISTS}: _POSSIBLE_WFP8A16_KERNELS", "Use FP8 W8A8 dynamic, which this GPU computes natively."),
    Row(("fp8-weight-only",), _CPU, "no", "vLLM lists no FP8 weight-only kernel for CPUs.",
        f"{_LISTS}: _POSSIBLE_WFP8A16_KERNELS", "Use INT8 W8A8."),

    Row(("fp8-kv-cache",), _FP8_GPU, "native", "The attention kernels read and write an FP8 cache.",
        "v1/attention/backends/triton_attn.py: supported_kv_cache_dtypes; "
        "v1/attention/backends/rocm_attn.py: supported_kv_cache_dtypes"),
    Row(("fp8-kv-cache",), ("ampere",), "native",
        "FlashInfer stores the cache in FP8 and converts on reading; head size 64, 128, 256 or 512.",
        "v1/attention/backends/flashinfer.py: get_supported_head_sizes"),
    Row(("fp8-kv-cache",), ("turing",), "no",
        "No attention backend of vLLM takes an FP8 cache here: FlashInfer starts at 8.0, Triton's FP8 at 8.9.",
        "v1/attention/backends/flashinfer.py: supports_compute_capability; "
        "v1/attention/backends/triton_attn.py: int8_per_token_head",
        "Use kv_cache_dtype='int8_per_token_head', which Triton's attention takes here."),
    Row(("fp8-kv-cache",), _WIDE_CPU, "native",
        "The CPU attention kernel stores the cache in FP8 and converts on reading; head size divisible by 32.",
        "v1/attention/backends/cpu_attn.py: _get_attn_isa"),
    Row(("fp8-kv-cache",), ("cpu-avx2",), "no", "The CPU attention kernel needs AVX-512 or AMX for an FP8 cache.",
        "v1/attention/backends/cpu_attn.py: _get_attn_isa", "Shorten the context."),

    Row(("w4a16",), _NVIDIA, "native", "Marlin (Machete on Hopper) reads packed INT4 weights and computes in 16 bits.",
        f"{_LISTS}: _POSSIBLE_KERNELS; {_KERNELS}/mixed_precision/machete.py: MacheteLinearKernel.can_implement"),
    Row(("w4a16",), _AMD, "native", "vLLM's Triton or RDNA kernel reads packed INT4 weights and computes in 16 bits.",
        f"{_LISTS}: _POSSIBLE_KERNELS; {_KERNELS}/mixed_precision/rdna_hybrid_w4a16.py: "
        "RDNAHybridW4A16LinearKernel.can_implement"),
    Row(("w4a16",), _WIDE_CPU, "native",
        "vLLM's CPU kernel reads packed INT4 weights, in bfloat16 or float16 only; the group size must divide the "
        "columns.",
        f"{_KERNELS}/mixed_precision/cpu.py: CPUWNA16LinearKernel.apply_weights; "
        "measured: at vnni (as-cpu), 2026-11-29"),
    Row(("w4a16",), ("cpu-avx2",), "no", "vLLM's AVX2 library lacks the operator cpu_gemm_wna16.",
        "platforms/cpu.py: import_kernels; measured: at avx2 (as-cpu), 2026-11-29", "Use INT8 W8A8."),

    Row(("w4afp8",), ("hopper",), "native",
        "vLLM's CUTLASS W4A8 kernel is for compute capability 9.0 exactly, group size 128.",
        f"{_KERNELS}/mixed_precision/cutlass.py: CutlassW4A8LinearKernel.can_implement"),
    Row(("w4afp8",), ("turing", "ampere", "ada", *_BLACKWELL, *_AMD), "no",
        "vLLM's only kernel for INT4 weights with FP8 activations is for compute capability 9.0.",
        f"{_SCHEME}/compressed_tensors.py: _is_fp8_w4a8_sm90",
        "Use W4A16, which keeps the memory and leaves activations in 16 bits."),
    Row(("w4afp8", "nvfp4", "nvfp4a16", "mxfp4", "mxfp4afp8", "mxfp4a16"), _CPU, "no",
        "vLLM lists no kernel of this scheme for CPUs.",
        f"{_LISTS}: _POSSIBLE_NVFP4_KERNELS; {_LISTS}: _POSSIBLE_MXFP4_KERNELS; "
        f"{_SCHEME}/compressed_tensors.py: _is_fp8_w4a8_sm90",
        "Use W4A16, or INT8 W8A8 on a CPU without AVX-512."),

    Row(("nvfp4", "mxfp4"), _BLACKWELL, "native", "Blackwell's matrix units compute in FP4.",
        f"{_KERNELS}/nvfp4/flashinfer.py: FlashInferCutlassNvFp4LinearKernel.is_supported; "
        f"{_KERNELS}/mxfp4/flashinfer.py: FlashInferMxFp4LinearKernel.is_supported"),
    Row(("nvfp4",), ("turing", "ampere", "ada", "hopper"), "weights-only",
        "No FP4 arithmetic below 10.0: Marlin (Humming on Hopper) keeps weights in FP4 and computes in 16 bits.",
        f"{_LISTS}: _POSSIBLE_NVFP4_KERNELS; {_HUMMING}", "W4A16 does the same with INT4 weights."),
    Row(("mxfp4",), ("ampere", "ada"), "weights-only",
        "No FP4 arithmetic below compute capability 10.0: Marlin keeps the weights in FP4 and computes in 16 bits.",
        f"{_KERNELS}/mxfp4/marlin.py: MarlinMxFp4LinearKernel.can_implement", "W4A16 does the same with INT4 weights."),
    Row(("mxfp4",), ("hopper",), "emulated",
        "Hopper has no FP4 arithmetic: Humming, which outranks Marlin there, rounds activations to FP8, not to FP4.",
        f"{_KERNELS}/mxfp4/humming.py: HummingMxFp4LinearKernel; {_HUMMING}", "W4A16 leaves activations in 16 bits."),
    Row(("mxfp4", "mxfp4afp8", "mxfp4a16"), ("turing",), "no", "vLLM loads MXFP4 from compute capability 8.0 up.",
        f"{_SCHEME}/schemes/compressed_tensors_w4a4_mxfp4.py: CompressedTensorsW4A4Mxfp4.get_min_capability",
        "Use W4A16."),
    Row(("nvfp4",), _AMD, "emulated", "vLLM dequantizes at each step: it lists no other NVFP4 kernel for ROCm.",
        f"{_LISTS}: _POSSIBLE_NVFP4_KERNELS", "Use W4A16."),
    Row(("mxfp4", "mxfp4a16"), ("mi300", "rdna4"), "emulated",
        "No FP4 arithmetic here: vLLM dequantizes at each step, with the amd-quark package.",
        f"{_KERNELS}/mxfp4/emulation.py: EmulationMxfp4LinearKernel.can_implement", "Use W4A16."),
    Row(("mxfp4",), ("mi350",), "native", "AITER computes in MXFP4; without it vLLM dequantizes at each step.",
        f"{_KERNELS}/mxfp4/aiter.py: AiterMxfp4LinearKernel.is_supported"),

    Row(("mxfp4afp8",), ("ada", "hopper", "blackwell-12.0"), "native",
        "Humming reads FP4 weights and computes with activations in FP8, from compute capability 8.9 up.",
        f"{_SCHEME}/schemes/compressed_tensors_w4a8_mxfp4.py: CompressedTensorsW4A8Mxfp4; "
        f"{_KERNELS}/mxfp4/humming.py: HummingMxFp4LinearKernel.process_weights_after_loading"),
    Row(("mxfp4afp8",), ("blackwell-10.0",), "native",
        "Humming computes it; its FP8 is not yet fast from 10.0 to 11.0, as it says in the log.",
        f"{_SCHEME}/schemes/compressed_tensors_w4a8_mxfp4.py: CompressedTensorsW4A8Mxfp4; {_HUMMING}",
        "NVFP4 uses the FP4 arithmetic of this GPU."),
    Row(("mxfp4afp8",), ("ampere",), "no",
        "Humming is the only kernel for it, and FP8 arithmetic starts at compute capability 8.9.",
        f"{_KERNELS}/mxfp4/humming.py: HummingMxFp4LinearKernel.process_weights_after_loading", "Use W4A16."),
    Row(("mxfp4afp8",), _AMD, "emulated",
        "vLLM has no kernel with FP8 activations for ROCm and rounds them to MXFP4, fewer bits than the scheme says.",
        f"{_SCHEME}/schemes/compressed_tensors_w4a8_mxfp4.py: CompressedTensorsW4A8Mxfp4",
        "Use FP8 W8A8 dynamic, which this GPU computes natively."),

    Row(("nvfp4a16",), _NVIDIA, "native",
        "Marlin (CuTe on 10.0, Humming on Hopper) reads packed FP4 weights and computes in 16 bits.",
        f"{_LISTS}: init_nvfp4_linear_kernel"),
    Row(("nvfp4a16",), _AMD, "no", "vLLM lists no weight-only NVFP4 kernel for ROCm.",
        f"{_LISTS}: init_nvfp4_linear_kernel", "Use W4A16."),
    Row(("mxfp4a16",), ("ampere", "ada"), "native", "Marlin reads packed FP4 weights and computes in 16 bits.",
        f"{_KERNELS}/mxfp4/marlin.py: MarlinMxFp4LinearKernel.can_implement"),
    Row(("mxfp4a16",), ("hopper", *_BLACKWELL, "mi350"), "native",
        "vLLM takes it for MXFP4: its kernels here round activations too (to FP8 on Hopper), as this scheme does not.",
        f"{_SCHEME}/schemes/compressed_tensors_w4a4_mxfp4.py: CompressedTensorsW4A4Mxfp4; {_HUMMING}"),

    Row(("mxfp8",), (*_BLACKWELL, "mi350"), "native", "The GPU's matrix units compute in MXFP8.",
        f"{_KERNELS}/mxfp8/flashinfer.py: FlashInferCutlassMxfp8LinearKernel.is_supported; "
        f"{_KERNELS}/mxfp8/rocm_native.py: RocmDotScaledMxfp8LinearKernel.is_supported"),
    Row(("mxfp8",), ("turing", "ampere", "ada", "hopper"), "weights-only",
        "No MXFP8 arithmetic below 10.0: Marlin (Humming on Hopper) keeps weights in 8 bits and computes in 16.",
        f"{_LISTS}: _POSSIBLE_MXFP8_KERNELS; {_HUMMING}",
        "FP8 W8A8 dynamic computes in 8 bits from 8.9 up, INT8 W8A8 from 7.5 up."),
    Row(("mxfp8",), ("mi300", "rdna4"), "emulated", "No MXFP8 arithmetic here: vLLM dequantizes and computes in BF16.",
        f"{_KERNELS}/mxfp8/rocm_native.py: RocmDotScaledMxfp8LinearKernel.is_supported",
        "Use FP8 W8A8 dynamic, which this GPU computes natively."),
    Row(("mxfp8",), _CPU, "no", "vLLM lists no MXFP8 kernel for CPUs.", f"{_LISTS}: _POSSIBLE_MXFP8_KERNELS",
        "Use INT8 W8A8."),

    Row(SCHEMES, ("nvidia-older",), "no", "vLLM's quantized kernels start at compute capability 7.5, BF16 at 8.0.",
        f"{_SCHEME}/schemes/compressed_tensors_wNa16.py: CompressedTensorsWNA16.get_min_capability; "
        "platforms/cuda.py: check_if_supports_dtype",
        "Use the CPU build: make labs LOCK=cpu."),
    Row(SCHEMES, ("amd-other",), "not covered",
        "Of AMD's GPUs this table knows MI300, MI350 and RDNA4; vLLM may run the scheme here.",
        "platforms/rocm.py: supports_fp8", "Try it, or use the CPU build: make labs LOCK=cpu."),
    Row(SCHEMES, ("cpu-other",), "no", "The CPU build in labkit's lock needs an x86-64 processor with AVX2.",
        "platforms/cpu.py: import_kernels", "Run the labs on an x86-64 machine with AVX2, or on a workbench."),
)
# fmt: on
