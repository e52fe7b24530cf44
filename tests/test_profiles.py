"""Profiles and parameters: one home of defaults, and wrong values are refused."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from labkit.errors import UsageError
from labkit.profiles import EMBEDDED, PROFILES, TINY, WORKBENCH, Parameters, get_profile


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROFILE", "WORKSPACE", "MODEL", "DATA", "DTYPE"):
        monkeypatch.delenv(f"LABKIT_{name}", raising=False)


def test_the_default_profile_is_tiny_which_needs_no_network_and_no_other_model() -> None:
    assert get_profile() is TINY
    assert TINY.model == EMBEDDED
    assert not TINY.needs_network


def test_the_environment_chooses_a_profile_and_an_argument_goes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_PROFILE", "workbench")
    assert get_profile() is WORKBENCH
    assert get_profile("tiny") is TINY


def test_the_engine_s_number_type_is_the_machine_s_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_profile().engine.dtype == "auto"
    monkeypatch.setenv("LABKIT_DTYPE", "float32")
    assert get_profile().engine.dtype == "float32"
    assert get_profile("tiny", "bfloat16").engine.dtype == "bfloat16"
    with pytest.raises(UsageError, match=r"dtype is 'fp8'[\s\S]*auto, bfloat16, float16, float32"):
        get_profile(dtype="fp8")


def test_an_unknown_profile_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match=r"no profile 'big'[\s\S]*tiny, workbench"):
        get_profile("big")


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_every_profile_has_an_accuracy_task_and_a_perplexity_task(profile) -> None:
    assert profile.main_task.kind == "accuracy"
    assert {task.kind for task in profile.tasks} == {"accuracy", "perplexity"}


def test_workbench_has_the_defaults_of_the_design() -> None:
    assert WORKBENCH.model == "Qwen/Qwen2.5-7B-Instruct"
    calibration = WORKBENCH.calibration
    assert (calibration.rows, calibration.max_length, calibration.split) == (512, 2048, "train_sft")
    assert calibration.source.endswith("ultrachat_200k")
    assert {task.name: task.num_fewshot for task in WORKBENCH.tasks} == {"gsm8k": 5, "ifeval": 0, "wikitext": 0}


def test_a_profile_cannot_be_changed_in_place() -> None:
    with pytest.raises(FrozenInstanceError):
        TINY.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_limit_bounds_every_number_of_rows(profile) -> None:
    small = profile.with_limit(20)
    assert [task.limit for task in small.tasks] == [20] * len(profile.tasks)
    assert small.calibration.rows == 20
    assert small.sweep_rows == (16, 20)
    assert (small.sweep_limit, small.trap_limit) == (20, 20)


def test_a_limit_never_raises_a_number_of_rows() -> None:
    large = TINY.with_limit(10**6)
    assert [task.limit for task in large.tasks] == [task.limit for task in TINY.tasks]
    assert large.calibration.rows == TINY.calibration.rows


def test_empty_parameters_are_filled_from_the_environment_and_given_ones_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LABKIT_MODEL", "/models/other")
    monkeypatch.setenv("LABKIT_DATA", "/data")
    resolved = Parameters(data="mine", limit=3).resolved()
    assert (resolved.model, resolved.data, resolved.limit) == ("/models/other", "mine", 3)


@pytest.mark.parametrize("limit", [-1, "20", 2.5, True, None])
def test_a_limit_that_is_no_number_of_rows_is_refused(limit) -> None:
    with pytest.raises(UsageError, match="limit is"):
        Parameters(limit=limit).resolved()


@pytest.mark.parametrize("name", ["profile", "workspace", "model", "data"])
def test_a_parameter_that_is_not_text_is_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is 7"):
        Parameters(**{name: 7}).resolved()


def test_gpus_are_counted_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_TENSOR_PARALLEL", raising=False)
    assert get_profile("workbench") == WORKBENCH
    monkeypatch.setenv("LABKIT_TENSOR_PARALLEL", "2")
    monkeypatch.setenv("LABKIT_DATA_PARALLEL", "4")
    found = get_profile("workbench")
    assert (found.engine.tensor_parallel, found.data_parallel) == (2, 4)
    monkeypatch.setenv("LABKIT_DATA_PARALLEL", "all")
    with pytest.raises(UsageError, match="LABKIT_DATA_PARALLEL is 'all'"):
        get_profile("workbench")
