"""The three steps, as the command line and the pipeline run them: what the labs do, one variant at a time.

A step returns figures by name, for the pipeline's own record of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import checkpoint, checks, hardware
from labkit.checkpoint.schemes import PLAIN
from labkit.compare import Recovery
from labkit.errors import CheckFailed, MissingResult, Unsupported
from labkit.evaluation import Evaluation, Request
from labkit.lab import Lab
from labkit.pipeline.ranks import quantize_together
from labkit.pipeline.recipes import recipe_of
from labkit.pipeline.store import get_checkpoint, get_evaluations, put_checkpoint, put_evaluations
from labkit.profiles import BASELINE
from labkit.transfer import Address

if TYPE_CHECKING:
    from labkit.calibration import CalibrationSet
    from labkit.quantize import Job

Figures = dict[str, float]


def quantize(lab: Lab, variant: str, store: Address | None = None) -> Figures:
    """Makes a variant by its recipe, checks it as the labs do, and sends it to the store. Of the baseline: nothing.

    Raises CheckFailed for a checkpoint that the labs would not pass: GPTQ that fell back, a scheme that vLLM refuses.
    """
    if variant == BASELINE:
        print(f"{BASELINE} is the model as it came: there is nothing to quantize")
        return {}
    recipe = recipe_of(variant)
    together = lab.profile.data_parallel > 1 and recipe.rows_of(lab.profile) > 0
    figures = quantize_together(lab, variant, recipe) if together else make(lab, variant)
    if store:
        print(f"{variant} is at {put_checkpoint(lab, variant, store)}")
    return figures


class Alone:
    """A quantize by this process alone; `rank.First` is one with others."""

    def load(self, job: Job) -> Any:
        """The model."""
        return job.load()

    def share(self, rows: CalibrationSet) -> CalibrationSet:
        """The rows that this process puts through."""
        return rows

    def gather(self, job: Job) -> None:
        """Called when the model is quantized: what other processes know goes into `job`."""

    def leave(self) -> None:
        """Called when it is saved: the others are no longer needed."""


ALONE = Alone()


def make(lab: Lab, variant: str, way: Alone = ALONE) -> Figures:
    """Makes and checks a variant in this process."""
    from llmcompressor.entrypoints.oneshot import oneshot

    recipe = recipe_of(variant)
    rows = lab.calibration_rows(recipe.rows_of(lab.profile)) if recipe.rows_of(lab.profile) else None
    with lab.quantizing(variant) as job:
        model = way.load(job)
        oneshot(model=model, recipe=recipe.modifiers(lab.profile), **reading(rows and way.share(rows)))
        way.gather(job)
        job.save(model, rows)
        way.leave()
    found = checkpoint.inspect(lab.checkpoint(variant))
    if recipe.gptq:
        quantized = sum(scheme not in PLAIN.values() for scheme in found.schemes.values())
        lab.check(checks.gptq_ran(job.fallbacks, job.gptq_layers, quantized))
    lab.check(checks.reload_is_equal(job.reload_difference()))
    lab.check(checks.server_accepts(checkpoint.lint(lab.checkpoint(variant))))
    return {"work_seconds": job.wall_seconds, "peak_bytes": job.peak_bytes, "bytes": found.total_bytes}


def reading(rows: CalibrationSet | None) -> dict[str, Any]:
    """What `oneshot` is told of its calibration rows; nothing if it reads none."""
    if rows is None:
        return {}
    counts = {"max_seq_length": rows.max_length, "num_calibration_samples": len(rows.input_ids)}
    return {"dataset": rows.dataset(), **counts}


def evaluate(lab: Lab, variant: str, store: Address | None = None) -> Figures:
    """Scores a variant on the profile's tasks, on vLLM, and sends scores and samples to the store.

    With a store the checkpoint comes from there, without one from the workspace. Raises MissingResult if it is not
    there, Unsupported for a scheme that the engine of this machine can't run.
    """
    folder, scored = _folder(lab, variant, store)
    _require_engine(folder, variant)
    done = lab.evaluate([Request(variant, folder, task) for task in lab.profile.tasks])
    lab.check(checks.scores_are_whole(done))
    if store:
        print(f"Scores and samples are at {put_evaluations(lab, variant, done, store, scored)}")
    figures = {f"{e.request.task.name}_{e.request.task.metric}": e.value for e in done}
    starting = sum(e.engine_start_seconds for e in done)
    return {"work_seconds": sum(e.wall_seconds for e in done), "engine_start_seconds": starting, **figures}


def _folder(lab: Lab, variant: str, store: Address | None) -> tuple[Path, str]:
    """Where a checkpoint is, and its identity in the store."""
    if variant == BASELINE:
        return lab.base, ""
    if store:
        return get_checkpoint(lab, variant, store)
    if not lab.has(variant):
        command = f"labkit quantize {variant} -p model {lab.model_source}"
        raise MissingResult(f"{lab.checkpoint(variant)} is not there", fix=f"make it first: {command}")
    return lab.checkpoint(variant), ""


def _require_engine(folder: Path, variant: str) -> None:
    for scheme, _ in Counter(checkpoint.inspect(folder).schemes.values()).most_common():
        if scheme in hardware.SCHEMES and (row := hardware.capability(scheme)).verdict == "no":
            raise Unsupported(f"{variant} can't be evaluated here: {row.reason}", fix=row.alternative)


@dataclass(frozen=True)
class Compared:
    """One variant on one task against its baseline."""

    model: str
    variant: str
    task: str
    metric: str
    baseline: Evaluation
    candidate: Evaluation
    recovery: Recovery

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        named = {"model": self.model, "variant": self.variant, "task": self.task, "metric": self.metric}
        scores = {"baseline": self.baseline.value, "value": self.candidate.value, "stderr": self.candidate.stderr}
        return named | scores | {"recovery": asdict(self.recovery), "sentence": self.recovery.sentence()}


def compare(labs: Mapping[str, Lab], variants: Sequence[str], store: Address) -> list[Compared]:
    """Every variant of every model against its baseline, on the same rows. labs: one for each model, by its name.

    Raises MissingResult for an evaluation that is not there: a gap is not skipped.
    """
    found = []
    for model, lab in labs.items():
        scores = {variant: get_evaluations(lab, variant, store) for variant in (BASELINE, *variants)}
        for variant in variants:
            for task, baseline in scores[BASELINE].items():
                if task not in scores[variant]:
                    raise MissingResult(f"{variant} of {model} has no score of {task}", fix="evaluate it again")
                candidate = scores[variant][task]
                recovery = lab.compare(baseline, candidate)
                metric = baseline.request.task.metric
                found.append(Compared(model, variant, task, metric, baseline, candidate, recovery))
    return found


def require_recovered(found: Sequence[Compared]) -> None:
    """Raises CheckFailed naming every variant that did not recover, or of which these samples can't tell."""
    bad = [row for row in found if row.recovery.verdict != "recovered"]
    if bad:
        raise CheckFailed(
            "; ".join(f"{row.variant} of {row.model} on {row.task}: {row.recovery.sentence()}" for row in bad),
            why="whatever comes after a comparison takes what passed it for good",
            fix="leave out what is lost; where it can't be told, score more rows (leave out -p limit)",
        )
