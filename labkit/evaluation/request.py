"""What is asked of an evaluation, and what comes back.

BOS in lm-eval 0.4.13. Generation: a prompt that already begins with the text of BOS is encoded without special tokens,
so a chat template that writes BOS is safe, as long as lm-eval looks for the right token. It looks for its *prefix
token* (`prefix_token_id`): set that to anything but BOS, as one does for models that start documents with EOS, and
with `add_bos_token=True` the guard misses and BOS is doubled. Rolling perplexity: lm-eval puts the prefix token before
the text by itself, so `add_bos_token=True` (the default of most Llama tokenizers) doubles it, and scores the second
one. `double_bos` asks for exactly these settings; how many BOS really stood at the start is counted into the settings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from labkit.errors import DataError, UsageError
from labkit.estimates import ratio_stderr
from labkit.ledger import Purpose
from labkit.profiles import Task

Backend = Literal["vllm", "hf"]


@dataclass(frozen=True)
class Request:
    """One checkpoint on one task.

    chat_template, num_fewshot, limit: None takes the task's; a limit of None there means all rows. kv_cache_dtype:
    vLLM's, "auto" for what the checkpoint says. add_bos: whether the tokenizer puts BOS before a prompt; None means no
    where something else writes it (a chat template; lm-eval's rolling window), yes elsewhere. double_bos: the trap, see
    above. Raises UsageError for combinations that lm-eval does not have.
    """

    variant: str
    checkpoint: Path
    task: Task
    backend: Backend = "vllm"
    add_bos: bool | None = None
    double_bos: bool = False
    chat_template: bool | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    kv_cache_dtype: str = "auto"
    purpose: Purpose = "headline"

    def __post_init__(self) -> None:
        if self.backend not in ("vllm", "hf"):
            raise UsageError(f"backend is {self.backend!r}", fix="use vllm or hf")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit is {self.limit}", fix="give a number of rows, or None for the task's own limit")
        if self.kv_cache_dtype != "auto" and self.backend != "vllm":
            raise UsageError(
                f"kv_cache_dtype is {self.kv_cache_dtype!r} with the {self.backend} backend",
                why="only vLLM has a cache of its own",
                fix='use backend="vllm", or leave it out',
            )
        if self.templated and self.task.kind == "perplexity":
            raise UsageError(
                f"{self.task.name} through a chat template",
                why="perplexity is measured on running text, not on an answer",
                fix="leave chat_template=False for it",
            )
        if self.double_bos and self.add_bos is False:
            raise UsageError("double_bos with add_bos=False", fix="leave add_bos out: double_bos sets it")
        if self.double_bos and self.task.kind == "accuracy" and (self.backend != "vllm" or not self.templated):
            raise UsageError(
                "double_bos on a generation task needs the vllm backend and the chat template",
                why="lm-eval's HF backend looks for BOS itself, and a prompt without a template has no BOS to double",
                fix='use backend="vllm", chat_template=True',
            )

    @property
    def templated(self) -> bool:
        """Whether prompts go through the chat template."""
        return self.task.chat_template if self.chat_template is None else self.chat_template

    @property
    def adds_bos(self) -> bool:
        """What lm-eval's `add_bos_token` is set to."""
        if self.double_bos:
            return True
        if self.add_bos is not None:
            return self.add_bos
        return self.task.kind == "accuracy" and not self.templated

    @property
    def examples(self) -> int:
        """How many worked examples stand in the prompt."""
        return self.task.num_fewshot if self.num_fewshot is None else self.num_fewshot

    @property
    def rows(self) -> int | None:
        """How many rows are scored; None for all."""
        return self.task.limit if self.limit is None else self.limit


@dataclass(frozen=True)
class Sample:
    """One row as it was judged.

    The figure of a task is made of Σ score·weight / Σ weight. Accuracy: score in [0, 1], weight 1 (IFEval's instruction
    level: the share of the row's instructions that were followed, weight their number). Perplexity: score is the
    log-likelihood per word in nats, weight the number of words; the figure is exp of minus the mean.
    """

    doc_id: int
    score: float
    weight: float
    prediction: str
    target: str
    prompt_sha256: str
    response: str = ""


@dataclass(frozen=True)
class Evaluation:
    """A score and all that is needed to believe and to compare it.

    value is lm-eval's own figure; stderr its standard error over the rows, from `score` and `weight` (the linearised
    ratio; for a plain mean that is lm-eval's formula). `samples` is a JSONL file of `Sample`s, `metrics` every figure
    that lm-eval gave ("exact_match,strict-match": 0.94), `settings` what moves a score, `versions` of the child,
    `wall_seconds` the scoring's time, `engine_start_seconds` that before it, in which the engine was imported and the
    model loaded (next to nothing where one that was running went on), `cache_tokens` how many tokens the engine's KV
    cache holds (0: no vLLM).
    """

    request: Request
    value: float
    stderr: float
    n: int
    samples: Path
    settings: dict[str, Any]
    metrics: dict[str, float]
    versions: dict[str, str]
    wall_seconds: float = field(compare=False)
    engine_start_seconds: float = field(default=0.0, compare=False)
    cache_tokens: int = 0


def standard_error(samples: Sequence[Sample], kind: str) -> float:
    """The standard error of Σ s·w / Σ w over rows, for perplexity that of exp(-it)."""
    scores, weights = [s.score for s in samples], [s.weight for s in samples]
    error = ratio_stderr(scores, weights)
    if kind != "perplexity" or not error:
        return error
    return error * math.exp(-sum(s * w for s, w in zip(scores, weights, strict=True)) / sum(weights))


def load_samples(path: Path) -> list[Sample]:
    """The samples of an evaluation, in the order they were scored. Raises DataError naming a line that is not one."""
    if not path.is_file():
        raise DataError(f"{path} is not there", why="it holds the samples of an evaluation", fix="evaluate again")
    samples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            samples.append(Sample(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {number} is not a sample: {error}", fix="evaluate again") from error
    return samples


def save_evaluation(evaluation: Evaluation, samples: Sequence[Sample]) -> None:
    """Writes the samples, and beside them (`.json`) the rest, so that another lab can load the evaluation whole."""
    from labkit.workspace import write_atomically

    write_atomically(evaluation.samples, "".join(json.dumps(asdict(s)) + "\n" for s in samples))
    record = asdict(evaluation) | {"samples": evaluation.samples.name}
    write_atomically(evaluation.samples.with_suffix(".json"), json.dumps(record, indent=1, default=str) + "\n")


def load_evaluation(samples: Path) -> Evaluation:
    """An evaluation that an earlier run saved, by the path of its samples."""
    path = samples.with_suffix(".json")
    if not path.is_file():
        raise DataError(f"{path} is not there", why="it says how the samples were made", fix="evaluate again")
    record = json.loads(path.read_text(encoding="utf-8"))
    asked = record["request"]
    asked["checkpoint"] = Path(asked["checkpoint"])
    asked["task"]["data_files"] = {k: tuple(v) for k, v in asked["task"]["data_files"].items()}
    asked["task"] = Task(**asked["task"])
    return Evaluation(**{**record, "request": Request(**asked), "samples": samples})
