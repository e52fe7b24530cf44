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
from labkit.hardware.capability import cpu_class, gpu_class
from labkit.hardware.machine import engine_build, this_machine
from labkit.hardware.table import Verdict

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
        ("int8-w8a8", {"turing": "native", "hopper": "native", "blackwell-10.0": "no", "blackwell-12.0": "no"}),
        ("int8-w8a8", {"mi300": "native", "cpu-avx512-vnni": "native", "cpu-avx2": "emulated"}),
        ("fp8-w8a8-dynamic", {"ampere": "weights-only", "ada": "native", "hopper": "native", "mi300": "native"}),
        ("fp8-w8a8-dynamic", {"cpu-avx2": "emulated", "cpu-amx": "emulated", "blackwell-12.0": "native"}),
        ("fp8-w8a8-static", {"turing": "weights-only", "ada": "native", "cpu-avx512-vnni": "no", "cpu-amx": "no"}),
        ("fp8-w8a8-block", {"ampere": "weights-only", "hopper": "native", "cpu-avx512-vnni": "no", "mi300": "native"}),
        ("mxfp8", {"hopper": "weights-only", "blackwell-10.0": "native", "mi300": "emulated", "cpu-amx": "no"}),
        ("fp8-weight-only", {"nvidia-older": "no", "turing": "native", "cpu-amx": "no", "mi300": "no"}),
        ("fp8-kv-cache", {"turing": "no", "ada": "native", "cpu-avx2": "no", "cpu-avx512": "native"}),
        ("w4a16", {"turing": "native", "cpu-avx2": "no", "cpu-avx512": "native", "mi300": "native"}),
        ("w4afp8", {"ada": "no", "hopper": "native", "blackwell-10.0": "no", "cpu-amx": "no"}),
        ("nvfp4", {"turing": "weights-only", "hopper": "weights-only", "blackwell-10.0": "native", "cpu-amx": "no"}),
        ("mxfp4", {"turing": "no", "ampere": "weights-only", "blackwell-12.0": "native", "mi300": "emulated"}),
        ("bf16", {"ampere": "native", "cpu-avx2": "emulated", "nvidia-older": "no"}),
    ],
)
def test_the_key_truths_of_the_hardware_stand_in_the_table(scheme: str, verdicts: dict[str, str]) -> None:
    builds: dict[str, Build] = {"cpu": "cpu", "mi300": "rocm"}
    for hardware, verdict in verdicts.items():
        build = builds.get(hardware.split("-")[0], "cuda")
        assert judge(scheme, hardware, build).verdict == verdict, hardware


def test_turing_is_told_to_use_float16_in_place_of_bf16() -> None:
    found = capability("bf16", with_gpu(nvidia(7, 5)), "cuda")
    assert found.verdict == "no"
    assert "8.0" in found.reason
    assert "float16" in found.alternative


# vLLM's own minimum compute capabilities (x 10) of the schemes that the table rests on.
MINIMUM = {
    "w8a8_int8": 75,
    "w8a8_fp8": 89,
    "w8a16_fp8": 75,
    "wNa16": 75,
    "w4a8_fp8": 90,
    "w4a4_nvfp4": 75,
    "w4a4_mxfp4": 80,
}


@pytest.mark.parametrize(("scheme", "minimum"), MINIMUM.items())
def test_the_installed_vllm_still_asks_for_the_capability_that_the_table_rests_on(scheme: str, minimum: int) -> None:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("no vLLM in this environment")
    layers = Path(found.origin).parent / "model_executor/layers/quantization/compressed_tensors/schemes"
    source = (layers / f"compressed_tensors_{scheme}.py").read_text()
    stated = re.search(r"def get_min_capability\(cls\) -> int:\s*(?:#.*\s*)*return (\d+)", source)
    assert stated is not None
    assert int(stated[1]) == minimum


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
        ((12, 0), "blackwell-12.0"),
    ],
)
def test_a_gpu_is_classed_by_its_compute_capability(capability_of_gpu: tuple[int, int], expected: str) -> None:
    assert gpu_class(nvidia(*capability_of_gpu)) == expected


def test_of_amds_gpus_only_mi300_is_known() -> None:
    assert gpu_class(Gpu("AMD Instinct MI300 (gfx942)", 2**37, "amd")) == "mi300"
    assert gpu_class(Gpu("AMD GPU (gfx90a)", 2**36, "amd")) == "amd-other"


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (set(), "cpu-other"),
        ({"avx2"}, "cpu-avx2"),
        ({"avx2", "avx512f"}, "cpu-avx512"),
        ({"avx2", "avx512f", "avx512_vnni"}, "cpu-avx512-vnni"),
        ({"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx"}, "cpu-amx"),
    ],
)
def test_a_processor_is_classed_by_its_widest_feature(features: set[str], expected: str) -> None:
    assert cpu_class(frozenset(features)) == expected


def test_a_gpu_machine_with_the_cpu_build_gets_the_processors_answer_and_is_told_of_the_gpu_build() -> None:
    found = capability("fp8-w8a8-dynamic", with_gpu(nvidia(9, 0)), "cpu")
    assert (found.hardware, found.build, found.verdict) == ("cpu-avx512-vnni", "cpu", "emulated")
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
    "fp8-kv-cache": "native",
    "w4a16": "native",
    "nvfp4": "no",
    "mxfp4": "no",
}


def test_a_cpu_with_vnni_is_answered_as_measured() -> None:
    assert {scheme: capability(scheme, CPU_ONLY, "cpu").verdict for scheme in MEASURED} == MEASURED


def test_require_lets_pass_what_runs_here_and_refuses_what_does_not() -> None:
    if engine_build() != "cpu" or cpu_class(this_machine().features) not in ("cpu-avx512", "cpu-avx512-vnni"):
        pytest.skip("this test's answers are those of vLLM's CPU build with AVX-512 and without AMX")
    assert require("int8-w8a8").verdict in ("native", "emulated")
    with pytest.raises(Unsupported, match="static_scaled_fp8_quant") as refused:
        require("fp8-w8a8-static")
    assert "dynamic" in refused.value.fix
