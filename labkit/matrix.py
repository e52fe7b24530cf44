"""The capability matrix: what each quantization scheme meets on each hardware, in vLLM 0.32 built for it.

Verdicts:

- native: a kernel made for it runs the scheme; where it departs from what the scheme says, the reason says so.
- emulated: the arithmetic is done in another format than the scheme's, or in several steps: most often slow.
- weights-only: weights stay small in memory, activations are computed in 16 bits: memory is saved, arithmetic is not.
- no: the engine refuses it.
- not covered: neither vLLM's source nor a measurement told; the engine may run it.

`labkit.hardware` answers from it for a machine.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["native", "emulated", "weights-only", "no", "not covered"]
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
_ALL = (
    "bf16 int8-w8a8 fp8-w8a8-dynamic fp8-w8a8-static fp8-w8a8-block fp8-weight-only fp8-kv-cache "
    "w4a16 w4afp8 nvfp4 nvfp4a16 mxfp4 mxfp4afp8 mxfp4a16 mxfp8"
)
SCHEMES = tuple(_ALL.split())
_BLACKWELL, _AMD = "blackwell-10.0 blackwell-12.0", "mi300 mi350 rdna4"
_NVIDIA = f"turing ampere ada hopper {_BLACKWELL}"
_FP8_GPU = f"ada hopper {_BLACKWELL} {_AMD}"  # those with FP8 matrix units
_NARROW_CPU = "cpu-avx2 cpu-avx512 cpu-avx512-vnni"  # no BF16 products
_NO_AMX = f"{_NARROW_CPU} cpu-avx512-bf16"
_CPU = f"{_NO_AMX} cpu-amx"
_WIDE_CPU = _CPU.removeprefix("cpu-avx2 ")

_AS_CPU = "measured: a product at avx2, avx512, vnni and bf16 (as-cpu), 2026-11-29"
_VNNI, _AMX = "measured: at vnni (as-cpu), 2026-11-29", "measured: a CPU with AMX, 2026-11"
_DENSE_CPU = f"model_executor.layers.utils: dispatch_cpu_unquantized_gemm; {_AS_CPU}"
_INT8_CPU = f"scaled_mm.cpu: CPUInt8ScaledMMLinearKernel.process_weights_after_loading; {_AS_CPU}"
_HUMMING = "humming.priority: _HUMMING_PREFERRED_CAPABILITIES; humming.schema: check_and_fallback_input_schema"
USE_CPU = "Use the CPU build: make labs LOCK=cpu."
_FP8, _W4A16 = "Use FP8 W8A8 dynamic, which this GPU computes natively.", "Use W4A16."

# Schemes, hardware, verdict, reason, alternative, sources. A source is "MODULE: NAME" in vLLM, with as much of the end
# of the module's name as it takes; "csrc/FILE: TEXT" where only the CUDA build has it, compiled; or "measured: ...".
# fmt: off
_ROWS: tuple[tuple[str, str, Verdict, str, str, str], ...] = (
    ("bf16", f"ampere {_FP8_GPU}", "native", "The GPU's matrix units compute in BF16.", "",
     "platforms.cuda: check_if_supports_dtype; platforms.rocm: check_if_supports_dtype"),
    ("bf16", "turing", "no", "BF16 starts at compute capability 8.0, and vLLM refuses it below.",
     "Use float16 (dtype='float16').", "platforms.cuda: check_if_supports_dtype"),
    ("bf16", "cpu-avx512-bf16 cpu-amx", "native", "oneDNN multiplies in BF16 by instructions of its own.", "",
     _DENSE_CPU),
    ("bf16", _NARROW_CPU, "emulated",
     "Products are converted to float32 without AVX512_BF16 or AMX: vLLM is faster in float32, which labkit takes.",
     "Where memory matters more LABKIT_DTYPE=bfloat16 has vLLM keep two bytes a weight.", _DENSE_CPU),
    ("int8-w8a8", "turing ampere ada hopper", "native",
     "vLLM's CUTLASS kernels compute INT8 from compute capability 7.5 to 9.0.", "",
     "scaled_mm.cutlass: CutlassInt8ScaledMMLinearKernel.is_supported; kernels.linear: _POSSIBLE_INT8_KERNELS"),
    ("int8-w8a8", _BLACKWELL, "native",
     "vLLM's Triton kernel computes INT8 where labkit disables CUTLASS's, which vLLM picks and which ends with 9.0.",
     "Start a vLLM of your own with VLLM_DISABLED_KERNELS=CutlassInt8ScaledMMLinearKernel, or use FP8 W8A8.",
     "kernels.linear: _POSSIBLE_INT8_KERNELS; scaled_mm.triton: TritonInt8ScaledMMLinearKernel; "
     "csrc/libtorch_stable/quantization/w8a8/cutlass/c3x/scaled_mm_helper.hpp: Int8 not supported on SM"),
    ("int8-w8a8", _AMD, "native", "vLLM's AITER or Triton kernels compute INT8.", "",
     "kernels.linear: _POSSIBLE_INT8_KERNELS; scaled_mm.aiter: AiterInt8ScaledMMLinearKernel.is_supported"),
    ("int8-w8a8", "cpu-avx512-vnni cpu-avx512-bf16 cpu-amx", "native",
     "VNNI or AMX instructions compute INT8, by oneDNN or vLLM's own kernel.", "", _INT8_CPU),
    ("int8-w8a8", "cpu-avx512", "emulated",
     "Without VNNI oneDNN takes several instructions, and its sums of extreme products are clipped to 16 bits.",
     "Use the base model where memory allows it and exactness matters.", _INT8_CPU),
    ("int8-w8a8", "cpu-avx2", "emulated",
     "Without VNNI oneDNN's INT8 is slower than float32, and its sums of extreme products are clipped to 16 bits.",
     "Use the base model where memory allows it.", _INT8_CPU),
    ("fp8-w8a8-dynamic fp8-w8a8-static", _FP8_GPU, "native",
     "The GPU's matrix units compute in FP8 (compute capability 8.9 and up, CDNA3, CDNA4, RDNA4).", "",
     "schemes.compressed_tensors_w8a8_fp8: CompressedTensorsW8A8Fp8.get_min_capability; "
     "scaled_mm.pytorch: _rocm_torch_fp8_scaled_mm_supported"),
    ("fp8-w8a8-dynamic fp8-w8a8-static fp8-w8a8-block", "turing ampere", "weights-only",
     "No FP8 arithmetic below compute capability 8.9: vLLM keeps the weights in FP8 and computes in 16 bits.",
     "INT8 W8A8 computes in 8 bits here.",
     "compressed_tensors.compressed_tensors: CompressedTensorsW8A16Fp8; kernels.linear: _POSSIBLE_WFP8A16_KERNELS"),
    ("fp8-w8a8-dynamic", _NO_AMX, "emulated",
     "The CPU has no FP8 arithmetic: torch converts and multiplies, correct but slow.", "Use INT8 W8A8 for speed.",
     f"scaled_mm.pytorch: ChannelWiseTorchFP8ScaledMMLinearKernel; {_AS_CPU}"),
    ("fp8-w8a8-dynamic", "cpu-amx", "emulated",
     "vLLM's FP8 kernel wants AMX-FP8; labkit has torch convert and multiply: slow, and by oneDNN, as vLLM would, "
     "slower by far.", "Use INT8 W8A8 for speed.",
     f"scaled_mm.cpu: CPUFP8W8A8ScaledMMLinearKernel.is_supported; {_AMX}"),
    ("fp8-w8a8-static", _CPU, "no",
     "vLLM's CPU build only declares static_scaled_fp8_quant, which loading such a checkpoint calls.",
     "Use FP8 W8A8 dynamic, or INT8 W8A8.", f"utils.w8a8_utils: requantize_with_max_scale; {_VNNI}; {_AMX}"),
    ("fp8-w8a8-block", f"hopper {_BLACKWELL} {_AMD}", "native",
     "FP8 matrix units, by CUTLASS, DeepGEMM, AITER or Triton kernels.", "",
     "kernels.linear: _POSSIBLE_FP8_BLOCK_KERNELS"),
    ("fp8-w8a8-block", "ada", "weights-only",
     "CUTLASS's block-wise FP8 starts at 9.0, and below vLLM prefers Marlin, which computes in 16 bits, to Triton.",
     "Use FP8 W8A8 dynamic, which Ada computes natively.", "kernels.linear: _POSSIBLE_FP8_BLOCK_KERNELS; csrc/"
     "libtorch_stable/quantization/w8a8/cutlass/scaled_mm_entry.cu: cutlass_scaled_mm_supports_block_fp8"),
    ("fp8-w8a8-block", _NO_AMX, "no", "vLLM's block-wise FP8 kernels for CPUs need AMX.",
     "Use FP8 W8A8 dynamic, or INT8 W8A8.", f"scaled_mm.cpu: CPUFp8BlockScaledMMKernel.is_supported; {_VNNI}"),
    ("fp8-w8a8-block", "cpu-amx", "weights-only",
     "With AMX vLLM keeps the weights in FP8 and computes in BF16; layers with a bias, such as Qwen2's, it refuses.",
     "INT8 W8A8 computes in 8 bits here.", f"scaled_mm.cpu: CPUFp8BlockScaledMMKernel.apply_weights; {_AMX}"),
    ("fp8-weight-only", _NVIDIA, "native", "Humming reads FP8 weights from 7.5 up and computes in 16 bits.", "",
     "kernels.linear: _POSSIBLE_WFP8A16_KERNELS; scaled_mm.humming: HummingFP8ScaledMMLinearKernel.is_supported"),
    ("fp8-weight-only", _AMD, "no", "vLLM lists no FP8 weight-only kernel for ROCm.", _FP8,
     "kernels.linear: _POSSIBLE_WFP8A16_KERNELS"),
    ("fp8-weight-only mxfp8", _CPU, "no", "vLLM lists no kernel of this scheme for CPUs.", "Use INT8 W8A8.",
     "kernels.linear: _POSSIBLE_WFP8A16_KERNELS; kernels.linear: _POSSIBLE_MXFP8_KERNELS"),
    ("fp8-kv-cache", _FP8_GPU, "native", "The attention kernels read and write an FP8 cache.", "",
     "backends.triton_attn: supported_kv_cache_dtypes; backends.rocm_attn: supported_kv_cache_dtypes"),
    ("fp8-kv-cache", "ampere", "native", "FlashInfer stores FP8, converts on reading; head size 64, 128, 256 or 512.",
     "", "backends.flashinfer: get_supported_head_sizes"),
    ("fp8-kv-cache", "turing", "no",
     "No attention backend of vLLM takes an FP8 cache here: FlashInfer starts at 8.0, Triton's FP8 at 8.9.",
     "Use kv_cache_dtype='int8_per_token_head', which Triton's attention takes here.",
     "backends.flashinfer: supports_compute_capability; backends.triton_attn: int8_per_token_head"),
    ("fp8-kv-cache", _WIDE_CPU, "native", "The CPU kernel stores FP8, converts on reading; head size divisible by 32.",
     "", "backends.cpu_attn: _get_attn_isa"),
    ("fp8-kv-cache", "cpu-avx2", "no", "The CPU attention kernel needs AVX-512 or AMX for an FP8 cache.",
     "Shorten the context.", "backends.cpu_attn: _get_attn_isa"),
    ("w4a16", _NVIDIA, "native", "Marlin (Machete on Hopper) reads packed INT4 weights and computes in 16 bits.", "",
     "kernels.linear: _POSSIBLE_KERNELS; mixed_precision.machete: MacheteLinearKernel.can_implement"),
    ("w4a16", _AMD, "native", "vLLM's Triton or RDNA kernel reads packed INT4 weights and computes in 16 bits.", "",
     "kernels.linear: _POSSIBLE_KERNELS; mixed_precision.rdna_hybrid_w4a16: RDNAHybridW4A16LinearKernel.can_implement"),
    ("w4a16", _WIDE_CPU, "native",
     "The CPU kernel reads packed INT4 weights, in bfloat16 or float16 only; the group size must divide the columns.",
     "", f"mixed_precision.cpu: CPUWNA16LinearKernel.apply_weights; {_VNNI}"),
    ("w4a16", "cpu-avx2", "no", "vLLM's AVX2 library lacks the operator cpu_gemm_wna16.", "Use INT8 W8A8.",
     "platforms.cpu: import_kernels; measured: at avx2 (as-cpu), 2026-11-29"),
    ("w4afp8", "hopper", "native", "CUTLASS's W4A8 kernel is for compute capability 9.0 exactly, group size 128.", "",
     "mixed_precision.cutlass: CutlassW4A8LinearKernel.can_implement"),
    ("w4afp8", f"turing ampere ada {_BLACKWELL} {_AMD}", "no",
     "vLLM's only kernel for INT4 weights with FP8 activations is for compute capability 9.0.",
     "Use W4A16, which keeps the memory and leaves activations in 16 bits.",
     "compressed_tensors.compressed_tensors: _is_fp8_w4a8_sm90"),
    ("w4afp8 nvfp4 nvfp4a16 mxfp4 mxfp4afp8 mxfp4a16", _CPU, "no", "vLLM lists no kernel of this scheme for CPUs.",
     "Use W4A16, or INT8 W8A8 on a CPU without AVX-512.", "kernels.linear: _POSSIBLE_NVFP4_KERNELS; "
     "kernels.linear: _POSSIBLE_MXFP4_KERNELS; compressed_tensors.compressed_tensors: _is_fp8_w4a8_sm90"),
    ("nvfp4 mxfp4", _BLACKWELL, "native", "Blackwell's matrix units compute in FP4.", "",
     "nvfp4.flashinfer: FlashInferCutlassNvFp4LinearKernel.is_supported; "
     "mxfp4.flashinfer: FlashInferMxFp4LinearKernel.is_supported"),
    ("nvfp4", "turing ampere ada hopper", "weights-only",
     "No FP4 arithmetic below 10.0: Marlin (Humming on Hopper) keeps weights in FP4 and computes in 16 bits.",
     "W4A16 does the same with INT4 weights.", f"kernels.linear: _POSSIBLE_NVFP4_KERNELS; {_HUMMING}"),
    ("nvfp4", _AMD, "emulated", "vLLM dequantizes at each step: it lists no other NVFP4 kernel for ROCm.", _W4A16,
     "kernels.linear: _POSSIBLE_NVFP4_KERNELS"),
    ("nvfp4a16", _NVIDIA, "native",
     "Marlin (CuTe on 10.0, Humming on Hopper) reads packed FP4 weights and computes in 16 bits.", "",
     "kernels.linear: init_nvfp4_linear_kernel"),
    ("nvfp4a16", _AMD, "no", "vLLM lists no weight-only NVFP4 kernel for ROCm.", _W4A16,
     "kernels.linear: init_nvfp4_linear_kernel"),
    ("mxfp4", "ampere ada", "weights-only",
     "No FP4 arithmetic below compute capability 10.0: Marlin keeps the weights in FP4 and computes in 16 bits.",
     "W4A16 does the same with INT4 weights.", "mxfp4.marlin: MarlinMxFp4LinearKernel.can_implement"),
    ("mxfp4", "hopper", "emulated",
     "Hopper has no FP4 arithmetic: Humming, which outranks Marlin there, rounds activations to FP8, not to FP4.",
     "W4A16 leaves activations in 16 bits.", f"mxfp4.humming: HummingMxFp4LinearKernel; {_HUMMING}"),
    ("mxfp4", "mi350", "native", "AITER computes in MXFP4; without it vLLM dequantizes at each step.", "",
     "mxfp4.aiter: AiterMxfp4LinearKernel.is_supported"),
    ("mxfp4 mxfp4a16", "mi300 rdna4", "emulated",
     "No FP4 arithmetic here: vLLM dequantizes at each step, with the amd-quark package.", _W4A16,
     "mxfp4.emulation: EmulationMxfp4LinearKernel.can_implement"),
    ("mxfp4 mxfp4afp8 mxfp4a16", "turing", "no", "vLLM loads MXFP4 from compute capability 8.0 up.", _W4A16,
     "schemes.compressed_tensors_w4a4_mxfp4: CompressedTensorsW4A4Mxfp4.get_min_capability"),
    ("mxfp4a16", "ampere ada", "native", "Marlin reads packed FP4 weights and computes in 16 bits.", "",
     "mxfp4.marlin: MarlinMxFp4LinearKernel.can_implement"),
    ("mxfp4a16", f"hopper {_BLACKWELL} mi350", "native",
     "vLLM takes it for MXFP4: its kernels here round activations too (to FP8 on Hopper), as this scheme does not.", "",
     f"schemes.compressed_tensors_w4a4_mxfp4: CompressedTensorsW4A4Mxfp4; {_HUMMING}"),
    ("mxfp4afp8", "ada hopper blackwell-12.0", "native",
     "Humming reads FP4 weights and computes with activations in FP8, from compute capability 8.9 up.", "",
     "schemes.compressed_tensors_w4a8_mxfp4: CompressedTensorsW4A8Mxfp4; "
     "mxfp4.humming: HummingMxFp4LinearKernel.process_weights_after_loading"),
    ("mxfp4afp8", "blackwell-10.0", "native",
     "Humming computes it; its FP8 is not yet fast from 10.0 to 11.0, as it says in the log.",
     "NVFP4 uses the FP4 arithmetic of this GPU.",
     f"schemes.compressed_tensors_w4a8_mxfp4: CompressedTensorsW4A8Mxfp4; {_HUMMING}"),
    ("mxfp4afp8", "ampere", "no", "Only Humming has a kernel, and FP8 arithmetic starts at compute capability 8.9.",
     _W4A16, "mxfp4.humming: HummingMxFp4LinearKernel.process_weights_after_loading"),
    ("mxfp4afp8", _AMD, "emulated",
     "vLLM has no kernel with FP8 activations for ROCm and rounds them to MXFP4, fewer bits than the scheme says.",
     _FP8, "schemes.compressed_tensors_w4a8_mxfp4: CompressedTensorsW4A8Mxfp4"),
    ("mxfp8", f"{_BLACKWELL} mi350", "native", "The GPU's matrix units compute in MXFP8.", "",
     "mxfp8.flashinfer: FlashInferCutlassMxfp8LinearKernel.is_supported; "
     "mxfp8.rocm_native: RocmDotScaledMxfp8LinearKernel.is_supported"),
    ("mxfp8", "turing ampere ada hopper", "weights-only",
     "No MXFP8 arithmetic below 10.0: Marlin (Humming on Hopper) keeps weights in 8 bits and computes in 16.",
     "FP8 W8A8 dynamic computes in 8 bits from 8.9 up, INT8 W8A8 from 7.5 up.",
     f"kernels.linear: _POSSIBLE_MXFP8_KERNELS; {_HUMMING}"),
    ("mxfp8", "mi300 rdna4", "emulated", "No MXFP8 arithmetic here: vLLM dequantizes and computes in BF16.", _FP8,
     "mxfp8.rocm_native: RocmDotScaledMxfp8LinearKernel.is_supported"),
    (_ALL, "nvidia-older", "no", "vLLM's quantized kernels start at compute capability 7.5, BF16 at 8.0.",
     USE_CPU, "schemes.compressed_tensors_wNa16: CompressedTensorsWNA16.get_min_capability; "
     "platforms.cuda: check_if_supports_dtype"),
    (_ALL, "amd-other", "not covered", "This table knows MI300, MI350 and RDNA4; vLLM may run the scheme here.",
     "Try it, or use the CPU build: make labs LOCK=cpu.", "platforms.rocm: supports_fp8"),
    (_ALL, "cpu-other", "no", "The CPU build in labkit's lock needs an x86-64 processor with AVX2.",
     "Run the labs on an x86-64 machine with AVX2, or on a workbench.", "platforms.cpu: import_kernels"),
)
# fmt: on


class Row(NamedTuple):
    """One answer of the table, for each pairing of its schemes and its hardware."""

    schemes: tuple[str, ...]
    hardware: tuple[str, ...]
    verdict: Verdict
    reason: str
    alternative: str
    source: str


TABLE = tuple(Row(tuple(row[0].split()), tuple(row[1].split()), *row[2:]) for row in _ROWS)
