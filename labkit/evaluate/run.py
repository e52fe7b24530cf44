"""Evaluation requests, what comes back, and the run between them: lm-eval in an engine's process.

BOS in lm-eval 0.4.13. Generation: a prompt that already begins with the text of BOS is encoded without special tokens,
so a chat template that writes BOS is safe, as long as lm-eval looks for the right token. It looks for its *prefix
token* (`prefix_token_id`): set that to anything but BOS, as one does for models that start documents with EOS, and
with `add_bos_token=True` the guard misses and BOS is doubled. Rolling perplexity: lm-eval puts the prefix token before
the text by itself, so `add_bos_token=True` (the default of most Llama tokenizers) doubles it, and scores the second
one. `double_bos` asks for exactly these settings; how many BOS really stood at the start is counted into the settings.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import count, groupby
from pathlib import Path
from typing import Any, Literal

from labkit import engine as engines
from labkit import hardware
from labkit.behaviour import ratio_stderr
from labkit.errors import DataError, UsageError
from labkit.evaluate.tasks import DEFINITIONS, GENERATED, TaskFiles, find_sentence_splitter, task_file, task_files
from labkit.files import write_atomically
from labkit.ledger import Purpose
from labkit.profiles import Engine, Task
from labkit.store import Context


@dataclass(frozen=True)
class Request:
    """One checkpoint on one task.

    chat_template, num_fewshot, limit: None takes the task's; a limit of None there means all rows. kv_cache_dtype:
    vLLM's, "auto" for what the checkpoint says. double_bos: the trap, see above. Raises UsageError for what lm-eval
    does not have.
    """

    variant: str
    checkpoint: Path
    task: Task
    backend: Literal["vllm", "hf"] = "vllm"
    double_bos: bool = False
    chat_template: bool | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    kv_cache_dtype: str = "auto"
    purpose: Purpose = "headline"

    def __post_init__(self) -> None:
        vllm, perplexity = self.backend == "vllm", self.task.kind == "perplexity"
        for wrong, what, fix in (
            (self.backend not in ("vllm", "hf"), f"backend is {self.backend!r}", "use vllm or hf"),
            (self.limit is not None and self.limit < 1, f"limit is {self.limit}", "give a number from 1 up, or None"),
            (
                self.kv_cache_dtype != "auto" and not vllm,
                f"kv_cache_dtype is {self.kv_cache_dtype!r} with the {self.backend} backend",
                'use backend="vllm": only vLLM has a cache of its own',
            ),
            (
                self.templated and perplexity,
                f"{self.task.name} through a chat template",
                "leave chat_template=False for it: perplexity is measured on running text, not on an answer",
            ),
            (
                self.hides_bos and not (vllm and self.templated),
                f"double_bos with backend={self.backend!r} and chat_template={self.templated}",
                "use vllm and the template: the hf backend finds BOS itself, and no template means none to double",
            ),
        ):
            if wrong:
                raise UsageError(what, fix=fix)

    @property
    def templated(self) -> bool:
        """Whether prompts go through the chat template."""
        return self.task.chat_template if self.chat_template is None else self.chat_template

    @property
    def adds_bos(self) -> bool:
        """What lm-eval's `add_bos_token` is set to: no where a chat template or its own window writes BOS."""
        return self.double_bos or (self.task.kind == "accuracy" and not self.templated)

    @property
    def hides_bos(self) -> bool:
        """Whether lm-eval is to look for another token than BOS."""
        return self.double_bos and self.task.kind == "accuracy"

    @property
    def examples(self) -> int:
        """How many worked examples stand in the prompt."""
        return self.task.num_fewshot if self.num_fewshot is None else self.num_fewshot

    @property
    def rows(self) -> int | None:
        """How many rows are scored; None for all."""
        return self.task.limit if self.limit is None else self.limit

    def command_line(self, engine: Engine) -> str:
        """The `lm_eval` command that this stands for, one option a line.

        A generated task needs one thing more, which labkit adds when it runs: where the rows lie (`dataset_kwargs`).
        """
        model = ",".join(f"{name}={value}" for name, value in _model_args(self, engine, seed=0).items())
        options = [
            f"--model {self.backend}",
            f"--model_args {shlex.quote(model)}",
            f"--tasks {self.task.name}" + (f" --include_path {DEFINITIONS}" if self.task.name in GENERATED else ""),
            f"--num_fewshot {self.examples} --seed 0 --batch_size auto --log_samples",
        ]
        if self.templated:
            options.append("--apply_chat_template --fewshot_as_multiturn")
        if self.rows:
            options.append(f"--limit {self.rows}")
        return " \\\n    ".join(["lm_eval run", *options])


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
    that lm-eval gave ("exact_match,strict-match": 0.94), `settings` what moves a score, `versions` of the stack,
    `wall_seconds` the scoring's time, `engine_start_seconds` the time to load the model before it (next to nothing
    where one that was running went on), `cache_tokens` how many tokens the engine's KV cache holds (0: no vLLM).
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
    samples = []
    for number, line in enumerate(_saved(path).split("\n")[:-1], start=1):
        try:
            samples.append(Sample(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {number} is not a sample: {error}", fix="evaluate again") from error
    return samples


def save_evaluation(evaluation: Evaluation, samples: Sequence[Sample]) -> None:
    """Writes the samples, and beside them (`.json`) the rest, so that another lab can load the evaluation whole."""
    write_atomically(evaluation.samples, "".join(json.dumps(asdict(s)) + "\n" for s in samples))
    record = asdict(evaluation) | {"samples": evaluation.samples.name}
    write_atomically(evaluation.samples.with_suffix(".json"), json.dumps(record, indent=1, default=str) + "\n")


def load_evaluation(samples: Path) -> Evaluation:
    """An evaluation that an earlier run saved, by the path of its samples."""
    record = json.loads(_saved(samples.with_suffix(".json")))
    asked, task = record["request"], record["request"]["task"]
    task["data_files"] = {split: tuple(names) for split, names in task["data_files"].items()}
    asked = {f.name: asked[f.name] for f in fields(Request) if f.name in asked}  # an older labkit had more of them
    request = Request(**asked | {"checkpoint": Path(asked["checkpoint"]), "task": Task(**task)})
    return Evaluation(**record | {"request": request, "samples": samples})


def _saved(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"{path} is not there", why="it is one of the two files of an evaluation", fix="evaluate again")
    return path.read_text(encoding="utf-8")


# --- runs -------------------------------------------------------------------------------------------------------------


def evaluate(
    requests: Sequence[Request],
    context: Context,
    *,
    log: Path,
    on_tick: Callable[[int, str], None] = lambda *_: None,
) -> list[Evaluation]:
    """Scores each request with lm-eval in an engine's process; results come in the order of the requests.

    Requests for one checkpoint share its engine as far as their settings allow. On a CPU one process runs all of them,
    one model after another; on a GPU each model gets a process of its own, because only its end gives the memory back.
    Samples go to `results/`. on_tick: called with the number of requests done, and what is being done.

    Raises CheckpointError for a folder that is none, DataError for missing rows, ProcessFailed with the process's own
    exception when lm-eval or the engine fails.
    """
    by_engine: dict[str, list[Request]] = {}
    for request in requests:
        engines.model_length(request.checkpoint, context.engine)  # refuses what must not be loaded
        by_engine.setdefault(_engine_key(request), []).append(request)
    files = {}
    for task in {request.task.name: request.task for request in requests}.values():
        most = max(request.rows or 0 for request in requests if request.task.name == task.name)
        files[task.name] = task_files(task, context, rows=most)
    groups = list(by_engine.values())
    if hardware.engine_build() == "cpu":
        groups = [[request for group in groups for request in group]]
    found: dict[int, Evaluation] = {}
    done = count()
    for group in groups:
        job = (group, files, context)
        made = engines.run(_score, job, context, log=log, on_progress=lambda doing: on_tick(next(done), doing))
        found |= {id(request): evaluation for request, evaluation in zip(group, made, strict=True)}
    on_tick(len(requests), "done")
    return [found[id(request)] for request in requests]


def evaluate_loaded(
    model: Any, tokenizer: Any, request: Request, context: Context, about: Mapping[str, Any]
) -> Evaluation:
    """The same lm-eval call as `evaluate` makes, on a model in this process, as it stands (`labkit.simulation`).

    request: its checkpoint is what the model was made from, and its backend must be hf. about: what was done to the
    model since; it goes into the settings, so that no two such models pass for one.
    """
    files = task_files(request.task, context, rows=request.rows)
    lm = _load(request, context, pretrained=model, tokenizer=tokenizer, batch_size=64)
    return _evaluated(lm, request, files, context, dtype=str(model.dtype).removeprefix("torch."), **about)


def _engine_key(request: Request) -> str:
    """What must be equal for two requests to share a loaded model."""
    return repr((request.checkpoint, request.backend, request.adds_bos, request.hides_bos, request.kv_cache_dtype))


def _model_args(request: Request, engine: Engine, seed: int) -> dict[str, Any]:
    """What lm-eval's class for the backend is given, in its words."""
    length = engines.model_length(request.checkpoint, engine)
    given = {
        "pretrained": str(request.checkpoint),
        "dtype": engines.number_type(engine, request.checkpoint),
        "add_bos_token": request.adds_bos,
    }
    if request.backend == "hf":  # in BF16 log-likelihoods of different models tie exactly
        return given | {"max_length": length, "softmax_dtype": "float32"}
    if hardware.engine_build() != "cpu":
        given["gpu_memory_utilization"] = engine.gpu_memory_utilization
    return given | {
        "max_model_len": length,
        "enforce_eager": engine.enforce_eager,
        "kv_cache_dtype": request.kv_cache_dtype,
        "tensor_parallel_size": engine.tensor_parallel,
        "seed": seed,
    }


# --- in the engine's process ------------------------------------------------------------------------------------------


def _score(job: tuple[Sequence[Request], Mapping[str, TaskFiles], Context], tell: engines.Tell) -> list[Evaluation]:
    """Runs requests in their order; those of one engine, which stand together, share it."""
    requests, files, context = job
    found: list[Evaluation] = []
    lm: Any = None
    for _, group in groupby(requests, _engine_key):
        if found and found[-1].cache_tokens:  # on a CPU this goes far enough for the next one
            lm.model.llm_engine.engine_core.shutdown()
        lm = None
        gc.collect()
        for request in group:
            tell(f"{request.variant}: {request.task.name}")
            began = time.monotonic()
            if lm is None:
                lm = _load(request, context)
            starting = time.monotonic() - began
            found.append(_evaluated(lm, request, files[request.task.name], context, starting))
    return found  # the last engine ends with this process


def _load(request: Request, context: Context, **more: Any) -> Any:
    """The model in lm-eval's own class for the backend; `more` for that class."""
    from transformers import AutoTokenizer

    given = _model_args(request, context.engine, context.seed)
    tokenizer = AutoTokenizer.from_pretrained(request.checkpoint)
    bos = tokenizer.bos_token_id
    if bos is None:
        given["add_bos_token"] = False  # there is none to add
    elif request.hides_bos:
        given["prefix_token_id"] = next(i for i in (tokenizer.eos_token_id, 0, 1) if i not in (None, bos))
    if request.backend == "vllm":
        from lm_eval.models.vllm_causallms import VLLM

        return VLLM(**given, batch_size="auto")
    import torch
    from lm_eval.models.huggingface import HFLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return HFLM(**{"device": device, "batch_size": 16, **given, **more})


def _evaluated(
    lm: Any, request: Request, files: TaskFiles, context: Context, start_seconds: float = 0.0, **about: Any
) -> Evaluation:
    """One call of lm-eval, saved: its samples lie under a digest of its settings."""
    task = request.task
    if task.name == "ifeval":
        about["sentence_splitter"] = find_sentence_splitter(context)  # and lm-eval finds it, too
    began = time.monotonic()
    found = _simple_evaluate(lm, request, files, context.seed)
    seconds = time.monotonic() - began
    metrics = {k: v for k, v in found["results"][task.name].items() if "," in k and isinstance(v, (int, float))}
    judged = [s for s in found["samples"][task.name] if s["filter"] == task.filter]
    figure = f"{task.metric},{task.filter}"
    if figure not in metrics or not judged:
        raise KeyError(f"task {task.name} gave no {figure}; it gave {', '.join(sorted(metrics))}")
    first = judged[0]["arguments"][0][0]
    settings = _settings(lm, request, found, context, first) | {"data": files.data, **about}
    digest = hashlib.sha256(json.dumps([str(request.checkpoint), settings], sort_keys=True).encode()).hexdigest()
    cache = lm.model.llm_engine.vllm_config.cache_config if request.backend == "vllm" else None
    samples = [_sample(s, task.metric, task.kind) for s in judged]
    evaluation = Evaluation(
        request=request,
        value=float(metrics[figure]),
        stderr=standard_error(samples, task.kind),
        n=len(samples),
        samples=context.workspace.results / request.checkpoint.name / f"{task.name}-{digest[:10]}.jsonl",
        settings=settings,
        metrics=metrics,
        versions=hardware.stack_versions(),
        wall_seconds=seconds,
        engine_start_seconds=start_seconds,
        cache_tokens=int(cache.num_gpu_blocks * cache.block_size) if cache else 0,  # "gpu" on a CPU, too
    )
    save_evaluation(evaluation, samples)
    return evaluation


def _simple_evaluate(lm: Any, request: Request, files: TaskFiles, seed: int) -> dict[str, Any]:
    """What lm-eval itself gives."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    if request.templated and not lm.tokenizer.chat_template:
        raise ValueError(f"the tokenizer of {request.checkpoint} has no chat template; evaluate it without one")
    with task_file(request.task, request.examples, files) as path:
        found: dict[str, Any] = lm_eval.simple_evaluate(
            model=lm,
            tasks=[path],
            task_manager=TaskManager(include_defaults=False),
            limit=request.rows,
            apply_chat_template=request.templated,
            fewshot_as_multiturn=request.templated,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    return found


def _settings(lm: Any, request: Request, found: dict[str, Any], context: Context, first: str) -> dict[str, Any]:
    """All that moves a score. found: what lm-eval gave; first: the first row's prompt."""
    task, engine = request.task, context.engine
    generation = json.loads(json.dumps(found["configs"][task.name].get("generation_kwargs") or {}, default=str))
    if task.kind == "accuracy":
        generation.setdefault("max_gen_toks", lm.max_gen_toks)
    template = lm.tokenizer.chat_template if request.templated else None
    return {
        "task": task.name,
        "task_version": found["versions"].get(task.name),
        "filter": task.filter,
        "backend": request.backend,
        "num_fewshot": request.examples,
        "fewshot_as_multiturn": request.templated,
        "limit": request.rows,
        "seed": context.seed,
        "chat_template": hashlib.sha256(str(template).encode()).hexdigest()[:12] if template else "none",
        "add_bos": request.adds_bos,
        "double_bos": request.double_bos,
        "bos_at_start": _bos_at_start(lm, request, first),
        "generation": generation,
        "max_model_len": engines.model_length(request.checkpoint, engine),
        "dtype": engines.number_type(engine, request.checkpoint),
        "enforce_eager": engine.enforce_eager,
        "kv_cache_dtype": request.kv_cache_dtype,
    }


def _sample(sample: Mapping[str, Any], metric: str, kind: str) -> Sample:
    """One logged sample of lm-eval as labkit's `Sample`."""
    figure, generated = sample[metric], kind != "perplexity"
    if not generated:
        score, weight = figure[0] / figure[1], figure[1]
    elif isinstance(figure, (list, tuple)):
        score, weight = sum(map(float, figure)) / len(figure), float(len(figure))
    else:
        score, weight = float(figure), 1.0
    return Sample(
        doc_id=sample["doc_id"],
        score=score,
        weight=weight,
        prediction=str(sample["filtered_resps"][0]),
        target=str(sample["target"]) if generated else "",
        prompt_sha256=sample["prompt_hash"],
        response=str(sample["resps"][0][0]) if generated else "",
    )


def _bos_at_start(lm: Any, request: Request, text: str) -> int:
    """How many BOS tokens really stand before the first row, encoded by the code that encoded it for the model."""
    bos = lm.tokenizer.bos_token_id
    if request.task.kind == "perplexity":
        ids = [lm.prefix_token_id, *lm.tok_encode(text)]
    elif request.backend == "hf":
        ids = lm.tok_batch_encode([text])[0][0].tolist()
    else:
        ids = lm.tok_encode(text)
    return next((i for i, token in enumerate(ids) if token != bos), len(ids)) if bos is not None else 0
