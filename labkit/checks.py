"""What is asked of every checkpoint that a quantize made and of every score, whatever the model.

What a lab judges otherwise stands in its cells, with its threshold: `lab.check(ok, looked_at, found, fix)` for what
holds for any model, `lab.expect(...)` for what holds of the embedded one, whose story is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from labkit.checkpoint import Finding, Inspection
    from labkit.evaluate import Evaluation
    from labkit.quantize import Job

MEMORY_SLACK_BYTES = 300_000_000  # what a process may keep of a quantize: caches of libraries, not weights
RELOAD_TOLERANCE = 0.05  # of the logits' size: rounding


class Check(NamedTuple):
    """A judgement: `looked_at` and `found` in plain words, `fix` for when it is not ok."""

    ok: bool
    looked_at: str
    found: str
    fix: str


def quantized(job: Job, found: Inspection, findings: Sequence[Finding], scheme: str) -> Iterator[Check]:
    """scheme: of the checkpoint's layers, "" for one that quantizes none. found, findings: of `checkpoint.inspect` with
    values, and of `checkpoint.lint`.
    """
    layers = {name: given for name, given in found.schemes.items() if not name.endswith("lm_head")}
    wrong = next((f"{name} is {given}" for name, given in layers.items() if scheme not in ("", given)), "")
    right = list(layers.values()).count(scheme)
    if scheme:
        yield Check(
            right > 0 and not wrong,
            "the scheme of every linear layer in the saved files",
            f"{right} layers are {scheme}" + (f", but {wrong}" if wrong else ""),
            "compare the recipe's `targets` and `ignore` with the model's layer names",
        )
    bad = found.not_finite or ()
    yield Check(
        not bad,
        "every value of every tensor",
        f"NaN or infinity in {', '.join(bad[:3])}" if bad else "all are finite",
        "a scale was zero or overflowed: quantize again, in BF16 or float32, and look at the calibration rows",
    )
    if "GPTQ" in job.recipe:
        yield Check(
            not job.fallbacks and len(job.gptq_layers) == right > 0,
            "llm-compressor's log, layer by layer",
            f"GPTQ worked on {len(job.gptq_layers)} of {right} quantized layers and fell back in {len(job.fallbacks)}",
            "raise `dampening_frac` (0.1 helps most models) or give more calibration rows",
        )
    if job.has_model:  # not where a library wrote the files by itself
        difference = job.reload_difference()
        yield Check(
            difference <= RELOAD_TOLERANCE,
            "the logits of the model in memory against those of the checkpoint loaded again",
            f"they differ by {difference:.3%} of their size (at most {RELOAD_TOLERANCE:.0%} is rounding)",
            "the files are not what was in memory: delete the checkpoint and quantize again",
        )
    errors = [finding for finding in findings if finding.level == "error"]
    yield Check(
        not errors,
        "the checkpoint against what vLLM accepts",
        "; ".join(error.what for error in errors) or "it will load",
        errors[0].fix if errors else "",
    )
    yield Check(
        job.after_bytes - job.before_bytes <= MEMORY_SLACK_BYTES,
        "memory before the model was loaded against memory after it was released",
        f"{job.before_bytes / 1e6:,.0f} MB before, {job.after_bytes / 1e6:,.0f} MB after",
        "something still holds the model: a variable of your own, or an output (Out[...]) of a cell",
    )


def scored(evaluations: Sequence[Evaluation]) -> Check:
    """Every evaluation scored rows, not more than it was asked for, and its score is a number."""
    bad = [
        f"{e.request.variant} on {e.request.task.name} ({e.n} rows, score {e.value})"
        for e in evaluations
        if not (math.isfinite(e.value) and 0 < e.n <= (e.request.rows or e.n))
    ]
    return Check(
        not bad,
        f"the scores and row counts of {len(evaluations)} evaluations",
        "; ".join(bad) or f"{sum(e.n for e in evaluations):,} rows were scored, and every score is a number",
        "the data set is empty, or the model computes NaN: look at the samples in results/",
    )
