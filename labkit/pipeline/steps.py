"""The three steps, as the command line and the pipeline run them: what the labs do, one variant at a time.

Each returns figures by name, for the pipeline's record. A test holds the recipes against those that the notebooks show.
What steps leave for each other lies in a store, a bucket or a folder; each with a manifest, whole or not there:

STORE/checkpoints/<model>--<variant>/    quantized models
STORE/evaluations/<model>--<variant>/    scores with their samples, and of which checkpoint they are
STORE/comparison/                        every variant against its baseline
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from labkit import checkpoint, hardware
from labkit.compare import Recovery
from labkit.errors import CheckFailed, CheckpointError, MissingResult, TransferError, UsageError
from labkit.evaluate import Evaluation, Request, load_evaluation, load_samples, save_evaluation
from labkit.files import publishing, read_manifest, verify_manifest
from labkit.lab import Lab
from labkit.profiles import BASELINE, Profile
from labkit.transfer import Address, bundle, download_to_cache, listed, upload

Figures = dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """preset: llm-compressor's name of the scheme. scheme: what `checkpoint.inspect` calls it in the layers it made.

    rows: calibration rows at most; 0 if none are read, None for the profile's. smooths, gptq: whether SmoothQuant comes
    first, and whether GPTQ rounds; without, each weight goes to the nearest.
    """

    preset: str
    scheme: str
    rows: int | None = 0
    smooths: bool = False
    gptq: bool = False

    def rows_of(self, profile: Profile) -> int:
        """How many calibration rows it reads; 0 for none."""
        return profile.calibration.rows if self.rows is None else min(self.rows, profile.calibration.rows)

    def modifiers(self, profile: Profile) -> list[Any]:
        """What `oneshot(recipe=...)` takes."""
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        where: dict[str, Any] = {"targets": "Linear", "scheme": self.preset, "ignore": ["lm_head"]}
        smoothing = [SmoothQuantModifier(smoothing_strength=profile.smoothing_strength)] if self.smooths else []
        if self.gptq:
            return [*smoothing, GPTQModifier(**where, dampening_frac=profile.dampening_frac, actorder=None)]
        return [*smoothing, QuantizationModifier(**where)]


RECIPES = {
    "fp8-dynamic": Recipe("FP8_DYNAMIC", "fp8-w8a8-dynamic"),
    "fp8-static": Recipe("FP8", "fp8-w8a8-static", rows=128),
    "int8-rtn": Recipe("W8A8", "int8-w8a8"),
    "int8-gptq": Recipe("W8A8", "int8-w8a8", rows=None, gptq=True),
    "int8-smoothquant-gptq": Recipe("W8A8", "int8-w8a8", rows=None, smooths=True, gptq=True),
    "w4a16-gptq": Recipe("W4A16", "w4a16", rows=None, gptq=True),
    "mxfp4a16": Recipe("MXFP4A16", "mxfp4a16"),
    "nvfp4a16": Recipe("NVFP4A16", "nvfp4a16"),
    "mxfp4": Recipe("MXFP4", "mxfp4"),
    "nvfp4": Recipe("NVFP4", "nvfp4", rows=64),
}


def recipe_of(variant: str) -> Recipe:
    """The recipe of a variant; raises UsageError naming those there are."""
    if variant not in RECIPES:
        raise UsageError(f"there is no recipe {variant!r}", fix=f"choose one of: {', '.join(RECIPES)}")
    return RECIPES[variant]


def quantize(lab: Lab, variant: str, store: Address | None = None) -> Figures:
    """Makes a variant by its recipe, checks it as the labs do, and uploads it to the store. Of the baseline: nothing.

    Raises CheckFailed for a checkpoint that the labs would not pass: GPTQ that fell back, one that vLLM takes nowhere.
    """
    from llmcompressor.entrypoints.oneshot import oneshot

    if variant == BASELINE:
        print(f"{BASELINE} is the model as it came: there is nothing to quantize")
        return {}
    recipe = recipe_of(variant)
    rows, reads = None, {}
    if count := recipe.rows_of(lab.profile):
        rows = lab.calibration_rows(count)
        reads = {"dataset": rows.dataset(), "max_seq_length": rows.max_length, "num_calibration_samples": count}
    with lab.quantizing(variant) as job:
        model = job.load()
        oneshot(model=model, recipe=recipe.modifiers(lab.profile), **reads)
        job.save(model, rows)
    lab.verify(job, recipe.scheme)
    if store:
        place = _place(store, "checkpoints", lab, variant)
        upload(bundle(lab.checkpoint(variant)), place)
        print(f"{variant} is at {place}")
    weighs = checkpoint.inspect(lab.checkpoint(variant)).total_bytes
    return {"work_seconds": job.wall_seconds, "peak_bytes": job.peak_bytes, "bytes": weighs}


def evaluate(lab: Lab, variant: str, store: Address | None = None) -> Figures:
    """Scores a variant on the profile's tasks, on vLLM, and uploads scores and samples to the store.

    With a store the checkpoint comes from there, without one from the workspace. Raises MissingResult if it is not
    there, Unsupported for a scheme that the engine of this machine can't run.
    """
    folder, scored = lab.checkpoint(variant), ""
    if variant != BASELINE and store:
        folder, scored = _checkpoint(lab, variant, store)
    elif variant != BASELINE and not lab.has(variant):
        command = f"labkit quantize {variant} -p model {lab.model_source}"
        raise MissingResult(f"{folder} is not there", fix=f"make it first: {command}")
    for scheme in sorted({*checkpoint.inspect(folder).schemes.values()} & {*hardware.SCHEMES}):
        hardware.require(scheme)
    done = lab.evaluate([Request(variant, folder, task) for task in lab.profile.tasks])
    if store:
        place = _place(store, "evaluations", lab, variant)
        with _uploading(place, model=lab.model_source, variant=variant, checkpoint=scored) as stage:
            for e in done:
                save_evaluation(replace(e, samples=stage / f"{e.request.task.name}.jsonl"), load_samples(e.samples))
        print(f"Scores and samples are at {place}")
    figures = {f"{e.request.task.name}_{e.request.task.metric}": e.value for e in done}
    starting = sum(e.engine_start_seconds for e in done)
    return {"work_seconds": sum(e.wall_seconds for e in done), "engine_start_seconds": starting, **figures}


@dataclass(frozen=True)
class Compared:
    """One variant on one task against its baseline: a row of comparison.json. value, stderr: of the variant."""

    model: str
    variant: str
    task: str
    metric: str
    baseline: float
    value: float
    stderr: float
    recovery: Recovery


def compare(labs: Mapping[str, Lab], variants: Sequence[str], store: Address) -> list[Compared]:
    """Every variant of every model against its baseline, on the same rows. labs: one for each model, by its name.

    Raises MissingResult for an evaluation that is not there: a gap is not skipped.
    """
    found = []
    for model, lab in labs.items():
        scores = {variant: _evaluations(lab, variant, store) for variant in (BASELINE, *variants)}
        for variant in variants:
            for task, base in scores[BASELINE].items():
                if task not in scores[variant]:
                    raise MissingResult(f"{variant} of {model} has no score of {task}", fix="evaluate it again")
                e, metric = scores[variant][task], base.request.task.metric
                recovery = lab.compare(base, e)
                found.append(Compared(model, variant, task, metric, base.value, e.value, e.stderr, recovery))
    return found


def require_recovered(found: Sequence[Compared]) -> None:
    """Raises CheckFailed naming every variant that did not recover, or of which these samples can't tell."""
    bad = [row for row in found if row.recovery.verdict != "recovered"]
    if bad:
        said = "; ".join(f"{row.variant} of {row.model} on {row.task}: {row.recovery.sentence()}" for row in bad)
        fix = "leave out what is lost; where it can't be told, score more rows (leave out -p limit)"
        raise CheckFailed(said, "whatever comes after a comparison takes what passed it for good", fix)


def markdown(found: Sequence[Compared]) -> str:
    """A comparison as a table, and a sentence for each row of it."""
    columns = ("model", "variant", "task", "baseline", "value", "recovery", "95% interval", "verdict")
    lines, said = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)], []
    for row in found:
        r, score = row.recovery, f"{row.value:.3f} ± {row.stderr:.3f}"
        cells = [row.model, row.variant, row.task, f"{row.baseline:.3f}", score, f"{r.ratio:.1%}"]
        lines.append(f"| {' | '.join([*cells, f'{r.ci_low:.1%} to {r.ci_high:.1%}', r.verdict])} |")
        said.append(f"- `{row.variant}` of {row.model}, {row.task}: {r.sentence()}")
    return "\n".join(["# Comparison", "", *lines, "", *said, ""])


def write_comparison(found: Sequence[Compared], path: Path) -> None:
    """Writes a comparison as Markdown, and beside it as .json."""
    path.write_text(markdown(found), encoding="utf-8")
    rows = []
    for row in found:
        r = row.recovery
        rows.append(asdict(row) | {"recovery": asdict(r) | {"verdict": r.verdict}, "sentence": r.sentence()})
    path.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def upload_comparison(found: Sequence[Compared], store: Address) -> Address:
    """Uploads a comparison, as `write_comparison` writes it; returns where it is."""
    place = store.below("comparison")
    with _uploading(place) as stage:
        write_comparison(found, stage / "comparison.md")
    return place


# --- the store --------------------------------------------------------------------------------------------------------


def _place(store: Address, kind: str, lab: Lab, variant: str) -> Address:
    """Where in a store the checkpoint or evaluation of a variant of a lab's model lies."""
    return store.below(kind).below(f"{lab.model_name}--{variant}")


@contextmanager
def _uploading(place: Address, **facts: Any) -> Iterator[Path]:
    """An empty folder to fill, which is uploaded with `facts` in its manifest if the block ends without an error."""
    with TemporaryDirectory() as scratch:
        with publishing(Path(scratch) / "upload", **facts) as stage:
            yield stage
        upload(bundle(Path(scratch) / "upload"), place)


def _digest(place: Address, fix: str) -> str:
    """A digest of a place's files. Raises MissingResult with the command that makes them if it has none, or not all."""
    try:
        contents = {name: file.sha256 for name, file in sorted(listed(place).items())}
    except (CheckpointError, TransferError) as error:
        if isinstance(error, TransferError) and place.kind != "folder":
            raise  # the store can't be reached
        raise MissingResult(f"{place} is not there, or not whole: {error.what}", fix=f"run first: {fix}") from error
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


def _checkpoint(lab: Lab, variant: str, store: Address) -> tuple[Path, str]:
    """The folder of a variant's checkpoint, verified, and its digest; the store's own folder if the store is one."""
    place = _place(store, "checkpoints", lab, variant)
    found = _digest(place, f"labkit quantize {variant} -p model {lab.model_source} --store {store}")
    if place.kind != "folder":
        return checkpoint.resolve_model(str(place), offline=False, cache=lab.workspace.models), found
    verify_manifest(Path(place.name))
    return Path(place.name), found


def _evaluations(lab: Lab, variant: str, store: Address) -> dict[str, Evaluation]:
    """The scores of a variant by task.

    Raises MissingResult if there are none, CheckpointError if the checkpoint has been made again since.
    """
    place, of = (_place(store, kind, lab, variant) for kind in ("evaluations", "checkpoints"))
    asked = f"{variant} -p model {lab.model_source} --store {store}"
    _digest(place, f"labkit evaluate {asked}")
    facts = read_manifest(folder := download_to_cache(place, lab.workspace.root / "cache" / "evaluations"))
    lies_there = "" if variant == BASELINE else _digest(of, f"labkit quantize {asked}")
    if facts["model"] != lab.model_source or facts["checkpoint"] != lies_there:
        why = "the checkpoint was made again since it was evaluated, or from another model of the same name"
        fix = f"evaluate it again: labkit evaluate {asked}"
        raise CheckpointError(f"{place} is of another checkpoint than lies in {of}", why, fix)
    found = [load_evaluation(path) for path in sorted(folder.glob("*.jsonl"))]
    return {e.request.task.name: e for e in found}
