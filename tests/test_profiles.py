"""Profiles and parameters: one home of defaults, and wrong values are refused."""

from __future__ import annotations

import pytest

from labkit.errors import UsageError
from labkit.profiles import EMBEDDED, PROFILES, TINY, WORKBENCH, Parameters, Profile, get_profile


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROFILE", "WORKSPACE", "MODEL", "DATA", "DTYPE", "TENSOR_PARALLEL"):
        monkeypatch.delenv(f"LABKIT_{name}", raising=False)


def test_the_profile_is_tiny_unless_the_environment_or_before_that_an_argument_says_otherwise(monkeypatch) -> None:
    assert get_profile() is TINY
    assert (TINY.model, TINY.needs_network) == (EMBEDDED, False)
    monkeypatch.setenv("LABKIT_PROFILE", "workbench")
    assert get_profile() is WORKBENCH
    assert get_profile("tiny") is TINY
    with pytest.raises(UsageError, match=r"no profile 'big'[\s\S]*tiny, workbench"):
        get_profile("big")


def test_the_engines_number_type_is_the_machines_unless_one_is_named(monkeypatch) -> None:
    assert get_profile().engine.dtype == "auto"
    monkeypatch.setenv("LABKIT_DTYPE", "float32")
    assert get_profile().engine.dtype == "float32"
    assert get_profile("tiny", "bfloat16").engine.dtype == "bfloat16"
    with pytest.raises(UsageError, match=r"dtype is 'fp8'[\s\S]*auto, bfloat16, float16, float32"):
        get_profile(dtype="fp8")


def test_gpus_are_counted_by_the_environment(monkeypatch) -> None:
    assert get_profile("workbench") == WORKBENCH
    monkeypatch.setenv("LABKIT_TENSOR_PARALLEL", "2")
    assert get_profile("workbench").engine.tensor_parallel == 2
    monkeypatch.setenv("LABKIT_TENSOR_PARALLEL", "all")
    with pytest.raises(UsageError, match="LABKIT_TENSOR_PARALLEL is 'all'"):
        get_profile("workbench")


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_every_profile_has_both_kinds_of_task_and_a_limit_bounds_every_number_of_rows(profile: Profile) -> None:
    assert profile.main_task.kind == "accuracy"
    assert {task.kind for task in profile.tasks} == {"accuracy", "perplexity"}
    small, same = profile.with_limit(20), profile.with_limit(10**6)
    assert [task.limit for task in small.tasks] == [20] * len(profile.tasks)
    assert (small.calibration.rows, small.sweep_rows, small.sweep_limit, small.trap_limit) == (20, (16, 20), 20, 20)
    assert max(small.serving.concurrencies) <= 20
    assert same.calibration == profile.calibration
    assert [task.limit for task in same.tasks] == [task.limit or 10**6 for task in profile.tasks]


@pytest.mark.parametrize(
    ("name", "value"),
    [*(("limit", value) for value in (-1, "20", 2.5, True, None)), ("profile", 7), ("workspace", 7), ("data", None)],
)
def test_a_parameter_of_another_kind_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{name} is {value!r}"):
        Parameters(**{name: value}).resolved()
