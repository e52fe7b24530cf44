"""The capability matrix: complete, true to vLLM and to what was measured, and answering for every build."""

import importlib.util
import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from labkit.errors import Unsupported, UsageError
from labkit.hardware import HARDWARE, SCHEMES, TABLE, Build, Gpu, Machine, capability, judge, require
from labkit.hardware.capability import gpu_class
from labkit.hardware.machine import cpu_level, engine_build, this_machine
from labkit.hardware.table import Row, Verdict

CPU_ONLY = Machine("some CPU", 8, 2**35, frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}))


def nvidia(major: int, minor: int) -> Gpu:
    return Gpu("a GPU", 24 * 2**30, "nvidia", (major, minor))


def with_gpu(gpu: Gpu) -> Machine:
    return Machine("some CPU", 8, 2**35, CPU_ONLY.features, (gpu,))


def test_every_scheme_on_every_hardware_has_exactly_one_row() -> None:
    counted = Counter((scheme, hardware) for row in TABLE for scheme in row.schemes for hardware in row.hardware)
    assert counted == Counter(product(SCHEMES, HARDWARE))


def test_every_answer_is_a_verdict_with_a_reason_and_an_alternative_unless_native() -> None:
    for scheme, hardware, build in product(SCHEMES, HARDWARE, get_args(Build)):
        found = judge(scheme, hardware, build)
        assert found.verdict in get_args(Verdict)
        for sentence in filter(None, (found.reason, found.alternative)):
            assert re.fullmatch(r"(vLLM|oneDNN|[A-Z]).{8,140}\.", sentence), sentence
        assert found.verdict == "native" or found.alternative, found


@pytest.mark.parametrize(
    ("scheme", "verdicts"),
    [
        ("int8-w8a8", {"turing": "native", "hopper": "native", "blackwell-10.0": "native", "mi300": "native"}),
        ("int8-w8a8", {"cpu-avx2": "emulated", "cpu-avx512": "emulated", "cpu-avx512-vnni": "native"}),
        ("fp8-w8a8-dynamic", {"ampere": "weights-only", "ada": "native", "hopper": "native", "mi300": "native"}),
        ("fp8-w8a8-dynamic", {"cpu-avx2": "emulated", "cpu-amx": "emulated", "blackwell-12.0": "native"}),
        ("fp8-w8a8-static", {"turing": "weights-only", "ada": "native", "cpu-avx512-vnni": "no", "cpu-amx": "no"}),
        ("fp8-w8a8-block", {"ampere": "weights-only", "ada": "weights-only", "hopper": "native", "mi300": "native"}),
        ("fp8-w8a8-block", {"cpu-avx512-bf16": "no", "cpu-amx": "weights-only"}),
        ("mxfp8", {"hopper": "weights-only", "blackwell-10.0": "native", "mi300": "emulated", "mi350": "native"}),
        ("fp8-weight-only", {"nvidia-older": "no", "turing": "native", "cpu-amx": "no", "mi300": "no"}),
        ("fp8-kv-cache", {"turing": "no", "ada": "native", "cpu-avx2": "no", "cpu-avx512": "native"}),
        ("w4a16", {"turing": "native", "cpu-avx2": "no", "cpu-avx512": "native", "rdna4": "native"}),
        ("w4afp8", {"ada": "no", "hopper": "native", "blackwell-10.0": "no", "cpu-amx": "no"}),
        ("nvfp4", {"turing": "weights-only", "hopper": "weights-only", "blackwell-10.0": "native", "cpu-amx": "no"}),
        ("mxfp4", {"turing": "no", "ampere": "weights-only", "hopper": "emulated", "blackwell-12.0": "native"}),
        ("mxfp4", {"mi300": "emulated", "mi350": "native"}),
        ("mxfp4afp8", {"ampere": "no", "ada": "native", "hopper": "native", "mi350": "emulated", "cpu-amx": "no"}),
        ("bf16", {"ampere": "native", "nvidia-older": "no", "amd-other": "not covered"}),
        ("bf16", {"cpu-avx2": "emulated", "cpu-avx512-vnni": "emulated", "cpu-avx512-bf16": "native"}),
    ],
)
def test_the_key_truths_of_the_hardware_stand_in_the_table(scheme: str, verdicts: dict[str, str]) -> None:
    builds: dict[str, Build] = {"cpu": "cpu", "mi300": "rocm", "mi350": "rocm", "rdna4": "rocm", "amd": "rocm"}
    for hardware, verdict in verdicts.items():
        build = builds.get(hardware.split("-")[0], "cuda")
        assert judge(scheme, hardware, build).verdict == verdict, hardware


def test_turing_is_told_to_use_float16_in_place_of_bf16() -> None:
    found = capability("bf16", with_gpu(nvidia(7, 5)), "cuda")
    assert found.verdict == "no"
    assert "8.0" in found.reason
    assert "float16" in found.alternative


def source_of_vllm() -> Path:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("no vLLM in this environment")
    return Path(found.origin).parent


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.schemes[0]}-{row.hardware[0]}")
def test_every_row_names_a_measurement_or_a_place_in_the_installed_vllm(row: Row) -> None:
    for source in row.source.split("; "):
        file, _, name = source.partition(": ")
        assert name, source
        if file == "measured":
            assert re.search(r"20\d\d-\d\d", name), source
        elif not file.startswith("csrc/"):  # only in the CUDA build, compiled
            text = (source_of_vllm() / file).read_text()
            assert all(re.search(rf"\b{part}\b", text) for part in name.split(".")), source


def test_only_what_the_cuda_build_has_compiled_is_left_unchecked() -> None:
    unchecked = {source for row in TABLE for source in row.source.split("; ") if source.startswith("csrc/")}
    assert {Path(source.partition(": ")[0]).name for source in unchecked} == {
        "scaled_mm_helper.hpp",
        "scaled_mm_entry.cu",
    }


# vLLM's own minimum compute capabilities (x 10) of the schemes that the table rests on.
MINIMUM = {
    "w8a8_int8": 75,
    "w8a8_fp8": 89,
    "w8a16_fp8": 75,
    "wNa16": 75,
    "w4a8_fp8": 90,
    "w4a4_nvfp4": 75,
    "w4a4_mxfp4": 80,
    "w8a8_mxfp8": 75,
}


@pytest.mark.parametrize(("scheme", "minimum"), MINIMUM.items())
def test_the_installed_vllm_still_asks_for_the_capability_that_the_table_rests_on(scheme: str, minimum: int) -> None:
    layers = source_of_vllm() / "model_executor/layers/quantization/compressed_tensors/schemes"
    source = (layers / f"compressed_tensors_{scheme}.py").read_text()
    stated = re.search(r"def get_min_capability\(cls\) -> int:\s*(?:#.*\s*)*return (\d+)", source)
    assert stated is not None
    assert int(stated[1]) == minimum


# The order of vLLM's lists decides which kernel is taken; each pair here is one that a row rests on.
BEFORE = [
    ("_POSSIBLE_INT8_KERNELS", "CutlassInt8ScaledMMLinearKernel", "TritonInt8ScaledMMLinearKernel"),
    ("_POSSIBLE_FP8_BLOCK_KERNELS", "MarlinFP8ScaledMMLinearKernel", "TritonFp8BlockScaledMMKernel"),
    ("_POSSIBLE_WFP8A16_KERNELS", "HummingFP8ScaledMMLinearKernel", "MarlinFP8ScaledMMLinearKernel"),
    ("_POSSIBLE_MXFP4_KERNELS", "MarlinMxFp4LinearKernel", "HummingMxFp4LinearKernel"),
]


@pytest.mark.parametrize(("kernels", "first", "second"), BEFORE)
def test_the_installed_vllm_still_prefers_the_kernels_that_the_table_rests_on(
    kernels: str, first: str, second: str
) -> None:
    text = (source_of_vllm() / "model_executor/kernels/linear/__init__.py").read_text()
    found = re.search(rf"^{kernels}\b.*?PlatformEnum\.CUDA: \[(.*?)\]", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    assert -1 < found[1].find(first) < found[1].find(second)


def test_the_installed_vllm_still_prefers_humming_to_marlin_on_hopper_alone() -> None:
    text = (source_of_vllm() / "model_executor/layers/quantization/utils/humming/priority.py").read_text()
    assert "_HUMMING_PREFERRED_CAPABILITIES = frozenset({90})" in text


@pytest.mark.parametrize(
    ("capability_of_gpu", "expected"),
    [
        ((7, 0), "nvidia-older"),
        ((7, 5), "turing"),
        ((8, 0), "ampere"),
        ((8, 6), "ampere"),
        ((8, 9), "ada"),
        ((9, 0), "hopper"),
        ((10, 0), "blackwell-10.0"),
        ((10, 3), "blackwell-10.0"),
        ((11, 0), "blackwell-10.0"),
        ((12, 0), "blackwell-12.0"),
        ((12, 1), "blackwell-12.0"),
    ],
)
def test_a_gpu_is_classed_by_its_compute_capability(capability_of_gpu: tuple[int, int], expected: str) -> None:
    assert gpu_class(nvidia(*capability_of_gpu)) == expected


@pytest.mark.parametrize(
    ("gfx", "expected"),
    [("gfx942", "mi300"), ("gfx950", "mi350"), ("gfx1200", "rdna4"), ("gfx1201", "rdna4"), ("gfx90a", "amd-other")],
)
def test_an_amd_gpu_is_classed_by_its_architecture(gfx: str, expected: str) -> None:
    assert gpu_class(Gpu(f"AMD GPU ({gfx})", 2**37, "amd")) == expected


def test_a_gpu_that_the_table_does_not_know_is_tried_and_not_refused() -> None:
    found = capability("int8-w8a8", with_gpu(Gpu("AMD GPU (gfx90a)", 2**36, "amd")), "rocm")
    assert found.verdict == "not covered"
    assert "may run" in found.reason


def test_a_gpu_machine_with_the_cpu_build_gets_the_processors_answer_and_is_told_of_the_gpu_build() -> None:
    found = capability("fp8-w8a8-dynamic", with_gpu(nvidia(9, 0)), "cpu")
    assert (found.hardware, found.build, found.verdict) == ("cpu-avx512-bf16", "cpu", "emulated")
    assert "GPU unused" in found.reason
    assert "LOCK=gpu" in found.alternative


def test_the_same_machine_with_the_gpu_build_gets_the_gpus_answer() -> None:
    found = capability("fp8-w8a8-dynamic", with_gpu(nvidia(9, 0)), "cuda")
    assert (found.hardware, found.verdict) == ("hopper", "native")


@pytest.mark.parametrize("machine", [CPU_ONLY, with_gpu(nvidia(9, 0))])
def test_without_an_engine_nothing_runs_and_the_answer_says_how_to_get_one(machine: Machine) -> None:
    for scheme in SCHEMES:
        found = capability(scheme, machine, "none")
        assert found.verdict == "no"
        assert "No vLLM is installed" in found.reason
        assert "make labs" in found.alternative


def test_a_gpu_build_without_its_gpu_names_the_build_that_would_do() -> None:
    assert "LOCK=cpu" in capability("bf16", CPU_ONLY, "cuda").alternative
    amd = with_gpu(Gpu("AMD Instinct MI300 (gfx942)", 2**37, "amd"))
    assert "ROCm" in capability("bf16", amd, "cuda").alternative
    assert capability("bf16", amd, "rocm").verdict == "native"


def test_an_unknown_scheme_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="int8-w8a8"):
        capability("int9", CPU_ONLY, "cpu")


# Seen to run or to fail with vLLM's CPU build on a processor with AVX-512 VNNI and BF16 and without AMX.
MEASURED = {
    "bf16": "native",
    "int8-w8a8": "native",
    "fp8-w8a8-dynamic": "emulated",
    "fp8-w8a8-static": "no",
    "fp8-w8a8-block": "no",
    "fp8-kv-cache": "native",
    "w4a16": "native",
    "nvfp4a16": "no",
    "mxfp4a16": "no",
    "mxfp8": "no",
}


def test_a_cpu_with_bf16_units_is_answered_as_measured() -> None:
    assert {scheme: capability(scheme, CPU_ONLY, "cpu").verdict for scheme in MEASURED} == MEASURED


def test_where_bf16_is_emulated_the_row_says_what_labkit_serves_in() -> None:
    for features in ({"avx2"}, {"avx2", "avx512f"}, {"avx2", "avx512f", "avx512_vnni"}):
        found = capability("bf16", Machine("some CPU", 8, 2**35, frozenset(features)), "cpu")
        assert found.verdict == "emulated"
        assert "float32, which labkit takes" in found.reason


def test_require_lets_pass_what_runs_here_and_refuses_what_does_not() -> None:
    if engine_build() != "cpu" or cpu_level(this_machine().features)[0] == "other":
        pytest.skip("this test's answers are those of vLLM's CPU build")
    assert require("int8-w8a8").verdict in ("native", "emulated")
    with pytest.raises(Unsupported, match="static_scaled_fp8_quant") as refused:
        require("fp8-w8a8-static")
    assert "dynamic" in refused.value.fix
