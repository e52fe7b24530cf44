"""The capability matrix: complete, true to vLLM and to what was measured, and answering for every build."""

import importlib.util
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from labkit.errors import Unsupported, UsageError
from labkit.hardware import (
    Build,
    Gpu,
    Machine,
    capability,
    cpu_level,
    engine_build,
    gpu_class,
    judge,
    require,
    this_machine,
)
from labkit.matrix import HARDWARE, SCHEMES, TABLE, Row, Verdict

FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16")
CPU_ONLY = Machine("some CPU", 8, 2**35, frozenset(FEATURES))


def nvidia(major: int, minor: int) -> Gpu:
    return Gpu("a GPU", 24 * 2**30, "nvidia", (major, minor))


def with_gpu(gpu: Gpu) -> Machine:
    return replace(CPU_ONLY, gpus=(gpu,))


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


# What was seen on such processors, or what everybody knows of such GPUs: scheme, then verdict and hardware.
TRUTHS = """
int8-w8a8        native: turing hopper mi300 cpu-avx512-vnni cpu-avx512-bf16; emulated: cpu-avx2 cpu-avx512
fp8-w8a8-dynamic native: ada hopper mi300 blackwell-12.0; weights-only: ampere; emulated: cpu-avx512-bf16 cpu-amx
fp8-w8a8-static  native: ada; weights-only: turing; no: cpu-avx512-vnni cpu-avx512-bf16 cpu-amx
fp8-kv-cache     native: ada cpu-avx512 cpu-avx512-bf16; no: turing cpu-avx2
w4a16            native: turing cpu-avx512 cpu-avx512-bf16 rdna4; no: cpu-avx2
nvfp4            native: blackwell-10.0; weights-only: turing hopper; no: cpu-amx
bf16             native: ampere cpu-avx512-bf16; emulated: cpu-avx2; no: turing; not covered: amd-other
"""


@pytest.mark.parametrize("line", TRUTHS.strip().splitlines(), ids=lambda line: line.split()[0])
def test_the_key_truths_of_the_hardware_stand_in_the_table(line: str) -> None:
    scheme, _, stated = line.partition(" ")
    for part in stated.split(";"):
        verdict, _, keys = part.strip().partition(": ")
        for key in keys.split():
            build: Build = "cpu" if key.startswith("cpu") else "rocm" if "AMD" in HARDWARE[key] else "cuda"
            assert judge(scheme, key, build).verdict == verdict, key


@cache
def modules_of_vllm() -> dict[str, Path]:
    """The installed vLLM's sources by their module's name, without the root."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        return {}
    root = Path(found.origin).parent
    names = {path: ".".join(path.relative_to(root).with_suffix("").parts) for path in root.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def source(module: str) -> str:
    """The text of the one module of vLLM whose name ends so."""
    if not modules_of_vllm():
        pytest.skip("no vLLM in this environment")
    (path,) = (path for name, path in modules_of_vllm().items() if f".{name}".endswith(f".{module}"))
    return path.read_text()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.schemes[0]}-{row.hardware[0]}")
def test_every_row_names_a_measurement_or_a_place_in_the_installed_vllm(row: Row) -> None:
    for stated in row.source.split("; "):
        module, _, name = stated.partition(": ")
        assert name, stated
        if module == "measured":
            assert re.search(r"20\d\d-\d\d", name), stated
        elif module.startswith("csrc/"):  # compiled, and only in the CUDA build; a longer list wants a better check
            assert module.endswith(("scaled_mm_helper.hpp", "scaled_mm_entry.cu"))
        else:
            assert all(re.search(rf"\b{part}\b", source(module)) for part in name.split(".")), stated


# vLLM's own minimum compute capabilities (x 10) of the schemes that the table rests on.
MINIMUM = {"w8a8_int8": 75, "w8a8_fp8": 89, "w8a16_fp8": 75, "wNa16": 75, "w4a8_fp8": 90}
MINIMUM |= {"w4a4_nvfp4": 75, "w4a4_mxfp4": 80, "w8a8_mxfp8": 75}


def test_the_installed_vllm_still_asks_for_the_capabilities_that_the_table_rests_on() -> None:
    stated = r"def get_min_capability\(cls\) -> int:\s*(?:#.*\s*)*return (\d+)"
    for scheme, minimum in MINIMUM.items():
        assert re.findall(stated, source(f"schemes.compressed_tensors_{scheme}")) == [str(minimum)], scheme


# The order of vLLM's lists decides which kernel is taken; each pair here is one that a row rests on.
BEFORE = [
    ("_POSSIBLE_INT8_KERNELS", "CutlassInt8ScaledMMLinearKernel", "TritonInt8ScaledMMLinearKernel"),
    ("_POSSIBLE_FP8_BLOCK_KERNELS", "MarlinFP8ScaledMMLinearKernel", "TritonFp8BlockScaledMMKernel"),
    ("_POSSIBLE_WFP8A16_KERNELS", "HummingFP8ScaledMMLinearKernel", "MarlinFP8ScaledMMLinearKernel"),
    ("_POSSIBLE_MXFP4_KERNELS", "MarlinMxFp4LinearKernel", "HummingMxFp4LinearKernel"),
]


def test_the_installed_vllm_still_prefers_the_kernels_that_the_table_rests_on() -> None:
    for kernels, first, second in BEFORE:
        listed = rf"^{kernels}\b.*?PlatformEnum\.CUDA: \[(.*?)\]"
        (found,) = re.findall(listed, source("kernels.linear"), re.DOTALL | re.MULTILINE)
        assert -1 < found.find(first) < found.find(second), kernels
    assert "_HUMMING_PREFERRED_CAPABILITIES = frozenset({90})" in source("humming.priority"), "on Hopper alone"


GPUS = [((7, 0), "nvidia-older"), ((7, 5), "turing"), ((8, 0), "ampere"), ((8, 6), "ampere"), ((8, 9), "ada")]
GPUS += [((9, 0), "hopper"), ((10, 0), "blackwell-10.0"), ((10, 3), "blackwell-10.0"), ((11, 0), "blackwell-10.0")]
GPUS += [((12, 0), "blackwell-12.0"), ((12, 1), "blackwell-12.0")]
AMD = {"gfx942": "mi300", "gfx950": "mi350", "gfx1200": "rdna4", "gfx1201": "rdna4", "gfx90a": "amd-other"}


def test_a_gpu_is_classed_by_its_compute_capability_or_architecture() -> None:
    assert [gpu_class(nvidia(*capability)) for capability, _ in GPUS] == [key for _, key in GPUS]
    assert [gpu_class(Gpu(f"AMD GPU ({gfx})", 2**37, "amd")) for gfx in AMD] == list(AMD.values())


def test_a_gpu_machine_with_the_cpu_build_gets_the_processors_answer_and_is_told_of_the_gpu_build() -> None:
    found = capability("fp8-w8a8-dynamic", with_gpu(nvidia(9, 0)), "cpu")
    assert (found.hardware, found.build, found.verdict) == ("cpu-avx512-bf16", "cpu", "emulated")
    assert "GPU unused" in found.reason
    assert "LOCK=gpu" in found.alternative
    found = capability("fp8-w8a8-dynamic", with_gpu(nvidia(9, 0)), "cuda")
    assert (found.hardware, found.verdict) == ("hopper", "native"), "the same machine with the GPU build"


@pytest.mark.parametrize("machine", [CPU_ONLY, with_gpu(nvidia(9, 0))])
def test_without_an_engine_nothing_runs_and_the_answer_says_how_to_get_one(machine: Machine) -> None:
    found = capability("bf16", machine, "none")
    assert found.verdict == "no"
    assert "No vLLM is installed" in found.reason
    assert "make labs" in found.alternative


def test_an_answer_of_no_names_what_would_do() -> None:
    assert "LOCK=cpu" in capability("bf16", CPU_ONLY, "cuda").alternative
    assert "float16" in capability("bf16", with_gpu(nvidia(7, 5)), "cuda").alternative
    with pytest.raises(UsageError, match="int8-w8a8"):
        capability("int9", CPU_ONLY, "cpu")
    mi300 = with_gpu(Gpu("AMD Instinct MI300 (gfx942)", 2**37, "amd"))
    assert "ROCm" in capability("bf16", mi300, "cuda").alternative
    assert capability("bf16", mi300, "rocm").verdict == "native"


def test_require_lets_pass_what_runs_here_and_refuses_what_does_not() -> None:
    if engine_build() != "cpu" or cpu_level(this_machine().features)[0] == "other":
        pytest.skip("this test's answers are those of vLLM's CPU build")
    assert require("int8-w8a8").verdict in ("native", "emulated")
    with pytest.raises(Unsupported, match="static_scaled_fp8_quant") as refused:
        require("fp8-w8a8-static")
    assert "dynamic" in refused.value.fix
