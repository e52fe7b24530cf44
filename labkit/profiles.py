"""Profiles: all defaults of the labs, as data. The labs take the same path in every profile.

`tiny` runs everywhere: the embedded model, generated data, no network. `workbench` is a workshop on a GPU: a 7B model,
the usual data sets, from a hub, an own folder, or both. A default that a lab needs stands here and nowhere else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from labkit.errors import UsageError

EMBEDDED = "tiny"  # the model name that means the one inside the package
SPEED = "speed-0.4b"  # and the one with random weights that is made on the spot, to measure speed with

TaskKind = Literal["accuracy", "perplexity"]


@dataclass(frozen=True)
class Task:
    """One lm-eval task and how it is scored.

    name: lm-eval's task name. metric: the figure that the labs compare, in lm-eval's name, and `filter` the answer
    extraction it belongs to. limit: rows scored, None for all. chat_template: whether prompts go through it; BOS is
    always set explicitly, because a default that differs between two runs moves a score more than quantization does.
    data_files: for each split, the file names (without ending) under which a local `data` folder may hold it.
    """

    name: str
    kind: TaskKind
    metric: str
    filter: str = "none"
    num_fewshot: int = 0
    limit: int | None = None
    chat_template: bool = True
    data_files: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """Where calibration rows come from and how many: `source` is `tiny` (generated), or a hub data set."""

    source: str
    split: str
    rows: int
    max_length: int  # tokens; longer rows are truncated
    data_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeldOut:
    """Text that perplexity is measured on. source: `tiny` (generated) or a hub data set, "" for local files only.

    rows: how many, at most; length: tokens in each. documents: of a large data set, how many are read; None for all.
    file: of a large data set, the one file to read. data_files: names under which a local `data` folder may hold it.
    """

    name: str
    source: str
    rows: int
    length: int
    split: str = "test"
    config: str = ""
    file: str = ""
    column: str = "text"
    documents: int | None = None
    data_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Simulation:
    """Lab 06's grid. texts: what perplexity is measured on; rows: that GPTQ calibrates on; limit: problems answered."""

    texts: tuple[HeldOut, ...]
    rows: int
    limit: int

    def with_limit(self, limit: int) -> Simulation:
        """The same with at most `limit` rows of each kind."""
        texts = tuple(replace(text, rows=min(limit, text.rows)) for text in self.texts)
        return Simulation(texts, min(limit, self.rows), min(limit, self.limit))


@dataclass(frozen=True)
class Engine:
    """How vLLM is started: `kv_cache_gib` counts on the CPU only, `gpu_memory_utilization` on a GPU only."""

    max_model_len: int
    kv_cache_gib: float = 2.0
    gpu_memory_utilization: float = 0.85
    enforce_eager: bool = True
    dtype: str = "bfloat16"


@dataclass(frozen=True)
class Serving:
    """What a server is measured with. model: whose speed, if not the profile's own.

    concurrencies: clients at once; each sends one request after another, `requests_per_client` in all. repeats: of each
    load, for the variants whose ratio counts.
    """

    model: str
    concurrencies: tuple[int, ...]
    requests_per_client: int = 1
    input_tokens: int = 128
    output_tokens: int = 64
    prefill_tokens: int = 1024
    repeats: int = 3


@dataclass(frozen=True)
class Profile:
    """Everything that differs between a laptop and a workbench."""

    name: str
    model: str
    tasks: tuple[Task, ...]
    calibration: Calibration
    engine: Engine
    serving: Serving
    smoothing_strength: float
    dampening_frac: float
    sweep_rows: tuple[int, ...]  # calibration sizes that lab 02 compares
    sweep_limit: int  # rows scored at each point of a sweep
    trap_limit: int  # rows scored for a trap of lab 03, and the limit that is too small
    long_fewshot: int  # worked examples that make a prompt of lab 05 long
    simulation: Simulation
    seed: int = 0
    needs_network: bool = False

    @property
    def main_task(self) -> Task:
        """The accuracy task that headlines come from."""
        return next(task for task in self.tasks if task.kind == "accuracy")

    def with_limit(self, limit: int) -> Profile:
        """The same profile with at most `limit` rows scored in each task, for calibration, and clients at once."""
        tasks = tuple(replace(task, limit=min(limit, task.limit or limit)) for task in self.tasks)
        rows = min(limit, self.calibration.rows)
        return replace(
            self,
            tasks=tasks,
            calibration=replace(self.calibration, rows=rows),
            sweep_rows=tuple(sorted({min(rows, n) for n in self.sweep_rows})),
            sweep_limit=min(limit, self.sweep_limit),
            trap_limit=min(limit, self.trap_limit),
            serving=replace(self.serving, concurrencies=tuple(c for c in self.serving.concurrencies if c <= limit)),
            simulation=self.simulation.with_limit(limit),
        )


TINY = Profile(
    name="tiny",
    model=EMBEDDED,
    tasks=(
        Task("tiny_problems", "accuracy", "exact_match", filter="strict-match", limit=500),
        Task("tiny_stories", "perplexity", "word_perplexity", limit=200, chat_template=False),
    ),
    calibration=Calibration("tiny", "calibration", rows=512, max_length=256),
    engine=Engine(max_model_len=2048),
    serving=Serving(SPEED, concurrencies=(1, 8, 32)),
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
    serving=Serving("", concurrencies=(1, 2, 4, 8, 16, 32, 64, 128), requests_per_client=4, output_tokens=128),
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
    ),
    needs_network=True,
)

PROFILES = {profile.name: profile for profile in (TINY, WORKBENCH)}


def get_profile(name: str = "") -> Profile:
    """The profile of that name, else of `LABKIT_PROFILE`, else `tiny`."""
    name = name or os.environ.get("LABKIT_PROFILE", "") or TINY.name
    if name not in PROFILES:
        raise UsageError(f"there is no profile {name!r}", fix=f"choose one of: {', '.join(PROFILES)}")
    return PROFILES[name]


@dataclass(frozen=True)
class Parameters:
    """What a lab can be told; empty means the environment variable, else the default."""

    profile: str = ""
    workspace: str = ""
    model: str = ""
    data: str = ""
    limit: int = 0

    def resolved(self) -> Parameters:
        """The same with the environment filled in (`workspace` and `profile` are resolved by their own modules)."""
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 0:
            raise UsageError(f"limit is {self.limit!r}", fix="give a whole number of rows, or 0 for the profile's")
        named: dict[str, Any] = {}
        for name in ("profile", "workspace", "model", "data"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise UsageError(
                    f"{name} is {value!r}", why="it must be text", fix=f'write {name} = "..." or leave it empty'
                )
            named[name] = value or os.environ.get(f"LABKIT_{name.upper()}", "")
        return replace(self, **named)
