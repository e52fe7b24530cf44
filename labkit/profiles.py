"""Profiles: all defaults of the labs, as data. The labs take the same path in every profile.

`tiny` runs everywhere: the embedded model, generated data, no network. `workbench` is a workshop on a GPU: a 7B model,
the usual data sets, from a hub, an own folder, or both. A default that a lab needs stands here and nowhere else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from labkit.errors import UsageError

BASELINE = "bf16"  # the variant that is the base model itself

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
    """Lab 06's grid. texts: what perplexity is measured on; rows: that GPTQ calibrates on; limit: problems answered.

    dampening_frac: GPTQ's, a share of the mean of H's diagonal; its paper's 0.01, less than lab 02 takes for 8 bits.
    """

    texts: tuple[HeldOut, ...]
    limit: int
    rows: int = 128
    dampening_frac: float = 0.01

    def with_limit(self, limit: int) -> Simulation:
        """The same with at most `limit` rows of each kind."""
        texts = tuple(replace(text, rows=min(limit, text.rows)) for text in self.texts)
        return replace(self, texts=texts, rows=min(limit, self.rows), limit=min(limit, self.limit))


@dataclass(frozen=True)
class Engine:
    """How vLLM is started: `kv_cache_gib` counts on the CPU only, `gpu_memory_utilization` on a GPU only.

    dtype: what it computes in where nothing is quantized; "auto" for what the machine is fast in
    (`labkit.engine.number_type`). tensor_parallel: over how many GPUs of this node each layer is split.
    """

    max_model_len: int
    kv_cache_gib: float = 2.0
    gpu_memory_utilization: float = 0.85
    enforce_eager: bool = True
    dtype: str = "auto"
    tensor_parallel: int = 1


@dataclass(frozen=True)
class Serving:
    """What speed is measured with. model: whose, if not the profile's own.

    budget_seconds: about what lab 04 may take in all; loads are sized to it by what was measured before, so the tokens
    below are the most that a request has. concurrencies: requests at once; a server's clients send one after another,
    `requests_per_client` in all. repeats: of each measurement. compiled: whether engines compile their model, which
    makes them faster and each start longer, on a CPU by a minute.
    """

    model: str
    concurrencies: tuple[int, ...]
    budget_seconds: float
    requests_per_client: int = 1
    input_tokens: int = 128
    output_tokens: int = 64
    prefill_tokens: int = 1024
    repeats: int = 3
    compiled: bool = True

    def with_limit(self, limit: int) -> Serving:
        """The same with at most `limit` clients at once, and a fifth of the time."""
        fewer = tuple(count for count in self.concurrencies if count <= limit)
        return replace(self, concurrencies=fewer, budget_seconds=self.budget_seconds / 5)


@dataclass(frozen=True)
class Profile:
    """Everything that differs between a laptop and a workbench."""

    name: str
    model: str
    tasks: tuple[Task, ...]
    calibration: Calibration
    engine: Engine
    serving: Serving
    simulation: Simulation
    sweep_limit: int  # rows scored at each point of a sweep
    long_fewshot: int  # worked examples that make a prompt of lab 05 long
    smoothing_strength: float = 0.8
    dampening_frac: float = 0.1
    sweep_rows: tuple[int, ...] = (16, 512)  # calibration sizes that lab 02 compares
    trap_limit: int = 100  # rows scored for a trap of lab 03, and the limit that is too small
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
            serving=self.serving.with_limit(limit),
            simulation=self.simulation.with_limit(limit),
        )


@dataclass(frozen=True)
class Parameters:
    """What a lab can be told; empty means the environment variable, else the default."""

    profile: str = ""
    workspace: str = ""
    model: str = ""
    data: str = ""
    limit: int = 0
    target: str = ""
    dtype: str = ""

    def resolved(self) -> Parameters:
        """The same with the environment filled in (`workspace` and `profile` are resolved by their own modules)."""
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 0:
            raise UsageError(f"limit is {self.limit!r}", fix="give a whole number of rows, or 0 for the profile's")
        named: dict[str, str] = {}
        for name in (f.name for f in fields(self) if f.name != "limit"):
            value = getattr(self, name)
            if not isinstance(value, str):
                fix = f'write {name} = "..." or leave it empty'
                raise UsageError(f"{name} is {value!r}", why="it must be text", fix=fix)
            named[name] = value or os.environ.get(f"LABKIT_{name.upper()}", "")
        return replace(self, **named)  # type: ignore[arg-type]


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
    simulation=Simulation(tuple(HeldOut(name, "tiny", 64, 256) for name in ("stories", "problems")), limit=100),
    sweep_limit=500,
    long_fewshot=4,
)

_GSM8K_TRAIN = ("gsm8k_train", "gsm8k_train_1000")
_WIKITEXT = ("wikitext2_test", "wikitext_test", "wikitext")
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
            data_files={"test": ("gsm8k_test",), "train": _GSM8K_TRAIN},
        ),
        Task("ifeval", "accuracy", "inst_level_strict_acc", data_files={"train": ("ifeval_input_data", "ifeval")}),
        Task("wikitext", "perplexity", "word_perplexity", chat_template=False, data_files={"test": _WIKITEXT}),
    ),
    calibration=Calibration(
        "HuggingFaceH4/ultrachat_200k",
        "train_sft",
        rows=512,
        max_length=2048,
        data_files=("calibration", "ultrachat_200k", *_GSM8K_TRAIN),
    ),
    engine=Engine(max_model_len=4096),
    serving=Serving("", (1, 2, 4, 8, 16, 32, 64, 128), budget_seconds=1800, requests_per_client=4, output_tokens=128),
    simulation=Simulation(
        texts=(
            HeldOut("wikitext2", "Salesforce/wikitext", 40, 2048, config="wikitext-2-raw-v1", data_files=_WIKITEXT),
            HeldOut(
                "c4",
                "allenai/c4",
                40,
                2048,
                split="validation",
                file="en/c4-validation.00000-of-00008.json.gz",
                documents=1100,
                data_files=("c4_validation", "c4"),
            ),
            HeldOut("ptb", "", 40, 2048, data_files=("ptb_test", "ptb")),
        ),
        limit=50,
    ),
    sweep_limit=200,
    long_fewshot=8,
    needs_network=True,
)

DTYPES = ("auto", "bfloat16", "float16", "float32")
PROFILES = {profile.name: profile for profile in (TINY, WORKBENCH)}


def get_profile(name: str = "", dtype: str = "") -> Profile:
    """The profile of that name, else of `LABKIT_PROFILE`, else `tiny`.

    dtype: of its engine, else `LABKIT_DTYPE`, else "auto" (`labkit.engine.number_type`).
    `LABKIT_TENSOR_PARALLEL` says over how many GPUs an engine is split; `labkit doctor` knows when a model needs it.
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
        if not given.isdecimal() or int(given) < 1:
            raise UsageError(f"LABKIT_TENSOR_PARALLEL is {given!r}", fix="give a number of GPUs, 1 or more")
        found = replace(found, engine=replace(found.engine, tensor_parallel=int(given)))
    return found
