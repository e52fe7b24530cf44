"""The doctor: what this machine is, whether the environment is the locked one, and which labs will run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.hardware import SCHEMES, Gpu, Machine, capability, this_machine
from labkit.ops.doctor import (
    RUN_BYTES,
    common_lacks,
    disk_needed,
    installed_versions,
    lock_state,
    model_state,
    readiness,
)
from labkit.ops.notebooks import Lab, find_labs
from labkit.profiles import TINY, WORKBENCH
from tests.ops.probes import labkit, write_lab

GB = 10**9
SEVEN_B = 15_231_000_000  # bytes of Qwen2.5-7B in BF16
LAPTOP = Machine("a CPU", 4, 16 * GB)
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


def workstation(gpus: int, gigabytes: int) -> Machine:
    return Machine("a CPU", 16, 64 * GB, gpus=(Gpu("a GPU", gigabytes * GB, "nvidia", (8, 9)),) * gpus)


@pytest.fixture
def labs(tmp_path: Path) -> tuple[Lab, ...]:
    folder = tmp_path / "notebooks"
    write_lab(folder, "00_start_here")
    write_lab(folder, "01_fp8_rtn", makes=["fp8-dynamic"])
    write_lab(folder, "02_static", makes=["fp8-static"], schemes=["fp8-w8a8-static"])
    write_lab(folder, "03_evaluation", needs=["02_static"])
    return find_labs(folder)


# --- the lock, and the model


def test_an_environment_equals_its_lock_only_if_every_version_does(tmp_path: Path) -> None:
    lock, here = tmp_path / "gpu.txt", installed_versions()["numpy"]
    lock.write_text(f"# compiled\n--index-url https://example.org\nNumPy=={here} \\\n    --hash=sha256:ab\n")
    assert lock_state("gpu", tmp_path)["equal"], "further packages don't matter"
    lock.write_text(f"numpy=={here}\nlm_eval[hf,api]==9.0  # why\nnone-such==2.0+cpu \\\n    --hash=sha256:ef\n")
    found = lock_state("gpu", tmp_path)
    assert (found["equal"], found["missing"]) == (False, ["none-such"])
    assert found["different"] == [f"lm-eval: installed {installed_versions()['lm-eval']}, locked 9.0"]
    missing = lock_state("cpu", tmp_path)
    assert (missing["found"], missing["equal"]) == (False, False)


def test_a_model_is_sized_from_its_config_alone(tmp_path: Path) -> None:
    assert model_state("tiny") == (0, "")
    assert "has no config.json" in model_state(str(tmp_path))[1]
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    linear, norms = 2 * (4 * 128 * 128 + 3 * 128 * 256), 5 * 128
    assert model_state(str(tmp_path)) == (2 * (2 * 1000 * 128 + linear + norms), "")


def test_a_model_that_no_one_can_reach_is_a_reason_not_a_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("nobody/no-such-model-here", str(tmp_path / "missing" / "deep" / "folder")):
        assert "can't be fetched" in model_state(name)[1]


# --- what labs lack


@pytest.mark.parametrize(
    ("machine", "engine", "disk", "said"),
    [
        (LAPTOP, "cpu", 50 * GB, []),
        (LAPTOP, "cpu", GB // 10, ["free disk at the workspace: 0.1 GB, needed about 3.0 GB"]),
        (replace(LAPTOP, memory_bytes=4 * GB), "cpu", 50 * GB, ["memory: 4.0 GB, needed about 5.1 GB"]),
        (LAPTOP, "none", 50 * GB, ["no vLLM is installed; run `make labs` again"]),
    ],
)
def test_what_a_machine_lacks_is_said_with_numbers(
    labs: tuple[Lab, ...], machine: Machine, engine, disk: int, said: list[str]
) -> None:
    assert common_lacks(labs, TINY, 0, machine, engine, disk) == said


def test_a_7b_model_fits_a_24_gb_gpu_and_neither_a_laptop_nor_a_16_gb_gpu(labs: tuple[Lab, ...]) -> None:
    def lacks(machine: Machine, engine="cuda", profile=WORKBENCH) -> list[str]:
        return common_lacks(labs, profile, SEVEN_B, machine, engine, 200 * GB)

    assert lacks(workstation(1, 24)) == []
    assert "memory: 16.0 GB" in lacks(LAPTOP, "cpu")[0]
    assert lacks(workstation(1, 16)) == [
        "GPU memory that the engine may use: 13.6 GB on 1 GPU, the BF16 weights alone: 15.2 GB; "
        "this model needs 2 such GPUs: this machine has 1"
    ]
    (fix,) = lacks(workstation(4, 16))
    assert fix.endswith("this model needs 2 such GPUs: set LABKIT_TENSOR_PARALLEL=2")
    split = replace(WORKBENCH, engine=replace(WORKBENCH.engine, tensor_parallel=2))
    assert lacks(workstation(2, 16), profile=split) == []
    assert lacks(workstation(1, 16), profile=split) == ["GPUs: 1, and LABKIT_TENSOR_PARALLEL is 2"]


def test_the_disk_must_hold_what_the_labs_keep_and_the_largest_scratch(tmp_path: Path) -> None:
    write_lab(tmp_path, "00_start_here", keeps=[16])
    write_lab(tmp_path, "01_a", keeps=[8, 4], scratch=[8])
    write_lab(tmp_path, "02_b", scratch=[8, 8])
    copies = 1.0 + (0.6 + 0.35) + 2 * 0.6
    assert disk_needed(find_labs(tmp_path), 10 * GB) == pytest.approx(RUN_BYTES + copies * 10 * GB)


def test_a_lab_whose_need_will_not_run_will_not_run_either(labs: tuple[Lab, ...]) -> None:
    found = {lab["lab"]: lab for lab in readiness(labs, [])}
    static = capability("fp8-w8a8-static")
    possible = static.verdict != "no"  # not so on a CPU
    assert found["00_start_here"]["runs"]
    assert found["02_static"]["runs"] == possible
    assert possible or static.reason in found["02_static"]["lacks"][0]
    assert found["03_evaluation"]["lacks"] == ([] if possible else ["needs 02_static, which will not run"])
    for lab in readiness(labs[:2], ["no disk"]):
        assert (lab["runs"], lab["lacks"]) == (False, ["no disk"])


# --- the command


def test_the_doctor_prints_the_machine_and_the_times_and_exits_with_0_if_all_labs_can_run(tmp_path: Path) -> None:
    passed = tmp_path / "workspace" / "passed"
    passed.mkdir(parents=True)
    for name, seconds in (("00_start_here", 35.0), ("01_never_run", 0), ("02_second", 125.0)):
        write_lab(tmp_path / "notebooks", name)
        if seconds:
            known = {"profile": "tiny", "seconds": seconds, "cells": {}}
            (passed / f"{name}.json").write_text(json.dumps(known))
    done = labkit("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    for word in (this_machine().cpu, "lock", "disk", "memory", *SCHEMES):
        assert word in done.stdout
    *_, first, never, second, time = done.stdout.splitlines()
    assert [line.split()[1:] for line in (first, never, second)] == [
        ["yes", "40", "s"],
        ["yes", "unknown"],
        ["yes", "3", "min"],
    ]
    assert time == "time of all that will run: unknown"
    (tmp_path / "notebooks" / "01_never_run.ipynb").unlink()
    again = labkit("doctor", cwd=tmp_path)
    assert again.stdout.splitlines()[-1].startswith("time of all that will run: about 3 min")


def test_the_doctor_exits_with_1_and_the_reason_if_a_lab_cannot_run(labs: tuple[Lab, ...], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = labkit("doctor", "--json", "-p", "model", "empty", "--profile", "workbench", cwd=tmp_path)
    assert done.returncode == 1
    found = json.loads(done.stdout)
    keys = "machine available_bytes disk_free_bytes workspace engine versions capabilities lock profile model"
    assert list(found) == [*keys.split(), "in_the_way", "labs", "about_seconds", "all_labs_run"]
    assert (found["all_labs_run"], found["profile"]) == (False, "workbench")
    assert [lab["runs"] for lab in found["labs"]] == [False] * 4
    assert "has no config.json" in found["in_the_way"][0]
    assert {row["scheme"] for row in found["capabilities"]} >= {"int8-w8a8", "fp8-w8a8-dynamic"}
    assert set(found["lock"]) == {"name", "found", "equal", "missing", "different"}
    assert set(found["model"]) == {"name", "weight_bytes", "unreachable"}
