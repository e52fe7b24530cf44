"""Profiles: all defaults of the labs, as data. The labs take the same path in every profile.

`tiny` runs everywhere: the embedded model, generated data, no network. `workbench` is a workshop on a GPU: a 7B model,
the usual data sets, from a hub, an own folder, or both. A default that a lab needs stands here and nowhere else.
"""

from __future__ import annotations

import os
from dataclasses import replace

from labkit.errors import UsageError
from labkit.profiles.parameters import Parameters
from labkit.profiles.shapes import (
    BASELINE,
    Calibration,
    Engine,
    HeldOut,
    Profile,
    Serving,
    Simulation,
    Task,
    TaskKind,
)

__all__ = [
    "BASELINE",
    "EMBEDDED",
    "PROFILES",
    "SPEED",
    "TINY",
    "WORKBENCH",
    "Calibration",
    "Engine",
    "HeldOut",
    "Parameters",
    "Profile",
    "Serving",
    "Simulation",
    "Task",
    "TaskKind",
    "get_profile",
]

EMBEDDED = "tiny"  # the model name that means the one inside the package
SPEED = "speed-0.4b"  # and the one with random weights that is made on the spot, to measure speed with

TINY = Profile(
    name="tiny",
    model=EMBEDDED,
    tasks=(
        Task("tiny_problems", "accuracy", "exact_match", filter="strict-match", limit=500),
        Task("tiny_stories", "perplexity", "word_perplexity", limit=200, chat_template=False),
    ),
    calibration=Calibration("tiny", "calibration", rows=512, max_length=256),
    engine=Engine(max_model_len=2048, kv_cache_gib=1.0),  # the CPU build fills it with zeros: 1 GiB is half a second
    serving=Serving(SPEED, (1, 8, 32), budget_seconds=300, prefill_tokens=256, compiled=False),
    smoothing_strength=0.8,
    dampening_frac=0.1,
    sweep_rows=(16, 512),
    sweep_limit=500,
    trap_limit=100,
    long_fewshot=4,
    simulation=Simulation(
        texts=(HeldOut("stories", "tiny", rows=64, length=256), HeldOut("problems", "tiny", rows=64, length=256)),
        rows=128,
        limit=100,
        dampening_frac=0.01,
    ),
)

WORKBENCH = Profile(
    name="workbench",
    model="Qwen/Qwen2.5-7B-Instruct",
    tasks=(
        Task(
            "gsm8k",
            "accuracy",
            "exact_match",
            filter="strict-match",
            num_fewshot=5,
            limit=500,
            data_files={"test": ("gsm8k_test",), "train": ("gsm8k_train", "gsm8k_train_1000")},
        ),
        Task(
            "ifeval",
            "accuracy",
            "inst_level_strict_acc",
            limit=None,
            data_files={"train": ("ifeval_input_data", "ifeval")},
        ),
        Task(
            "wikitext",
            "perplexity",
            "word_perplexity",
            limit=None,
            chat_template=False,
            data_files={"test": ("wikitext2_test", "wikitext_test", "wikitext")},
        ),
    ),
    calibration=Calibration(
        "HuggingFaceH4/ultrachat_200k",
        "train_sft",
        rows=512,
        max_length=2048,
        data_files=("calibration", "ultrachat_200k", "gsm8k_train", "gsm8k_train_1000"),
    ),
    engine=Engine(max_model_len=4096),
    serving=Serving("", (1, 2, 4, 8, 16, 32, 64, 128), budget_seconds=1800, requests_per_client=4, output_tokens=128),
    smoothing_strength=0.8,
    dampening_frac=0.1,
    sweep_rows=(16, 512),
    sweep_limit=200,
    trap_limit=100,
    long_fewshot=8,
    simulation=Simulation(
        texts=(
            HeldOut(
                "wikitext2",
                "Salesforce/wikitext",
                config="wikitext-2-raw-v1",
                rows=40,
                length=2048,
                data_files=("wikitext2_test", "wikitext_test", "wikitext"),
            ),
            HeldOut(
                "c4",
                "allenai/c4",
                split="validation",
                file="en/c4-validation.00000-of-00008.json.gz",
                documents=1100,
                rows=40,
                length=2048,
                data_files=("c4_validation", "c4"),
            ),
            HeldOut("ptb", "", rows=40, length=2048, data_files=("ptb_test", "ptb")),
        ),
        rows=128,
        limit=50,
        dampening_frac=0.01,
    ),
    needs_network=True,
)

DTYPES = ("auto", "bfloat16", "float16", "float32")
PROFILES = {profile.name: profile for profile in (TINY, WORKBENCH)}


def get_profile(name: str = "", dtype: str = "") -> Profile:
    """The profile of that name, else of `LABKIT_PROFILE`, else `tiny`.

    dtype: of its engine, else `LABKIT_DTYPE`, else "auto" (`labkit.engine.number_type`).
    `LABKIT_TENSOR_PARALLEL` and `LABKIT_DATA_PARALLEL` say over how many GPUs an engine is split and a calibration
    shared; `labkit doctor` knows when a model needs them.
    """
    name = name or os.environ.get("LABKIT_PROFILE", "") or TINY.name
    if name not in PROFILES:
        raise UsageError(f"there is no profile {name!r}", fix=f"choose one of: {', '.join(PROFILES)}")
    dtype = dtype or os.environ.get("LABKIT_DTYPE", "") or "auto"
    if dtype not in DTYPES:
        raise UsageError(f"dtype is {dtype!r}", fix=f"choose one of: {', '.join(DTYPES)}")
    found = PROFILES[name]
    if dtype != found.engine.dtype:
        found = replace(found, engine=replace(found.engine, dtype=dtype))
    if given := os.environ.get("LABKIT_TENSOR_PARALLEL"):
        found = replace(found, engine=replace(found.engine, tensor_parallel=_count("LABKIT_TENSOR_PARALLEL", given)))
    if given := os.environ.get("LABKIT_DATA_PARALLEL"):
        found = replace(found, data_parallel=_count("LABKIT_DATA_PARALLEL", given))
    return found


def _count(variable: str, given: str) -> int:
    if not given.isdecimal() or int(given) < 1:
        raise UsageError(f"{variable} is {given!r}", fix="give a number of GPUs, 1 or more")
    return int(given)
