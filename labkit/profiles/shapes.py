"""What a profile is made of: tasks, calibration, held-out text, engine, serving."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

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
    rows: int
    limit: int
    dampening_frac: float

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
    smoothing_strength: float
    dampening_frac: float
    sweep_rows: tuple[int, ...]  # calibration sizes that lab 02 compares
    sweep_limit: int  # rows scored at each point of a sweep
    trap_limit: int  # rows scored for a trap of lab 03, and the limit that is too small
    long_fewshot: int  # worked examples that make a prompt of lab 05 long
    simulation: Simulation
    seed: int = 0
    needs_network: bool = False
    data_parallel: int = 1  # processes that share the calibration rows of `labkit quantize`, one on each GPU

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
