"""What each lab's result must satisfy: one call says what it looked at, what it found, and what to do if that is wrong.

Two kinds. An *invariant* holds for any model: a layer that should be FP8 is FP8, bytes are what arithmetic says, GPTQ
really ran. An *expectation* holds for the embedded model, whose story is known (plain INT8 collapses, SmoothQuant
recovers); for any other model the same check prints what was observed and never fails. The functions here only judge;
`Lab.check` prints the judgement and stops the lab.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from labkit.checkpoint import Finding
    from labkit.compare import Recovery
    from labkit.evaluation import Evaluation

MEMORY_SLACK_BYTES = 300_000_000  # what a process may keep of a quantize: caches of libraries, not weights
PREDICTED_BYTES_TOLERANCE = 0.01
COLLAPSE = 0.20  # points of accuracy that plain INT8 loses at least on the embedded model
HOLDS = 0.02  # points of accuracy that a good scheme may lose on it


@dataclass(frozen=True)
class Check:
    """A judgement: `looked_at` and `found` in plain words, `fix` for when it is not ok."""

    kind: Literal["invariant", "expectation"]
    ok: bool
    looked_at: str
    found: str
    fix: str


def invariant(ok: bool, looked_at: str, found: str, fix: str) -> Check:
    """A check that holds for any model."""
    return Check("invariant", bool(ok), looked_at, found, fix)


def expectation(ok: bool, looked_at: str, found: str, fix: str) -> Check:
    """A check that holds for the embedded model."""
    return Check("expectation", bool(ok), looked_at, found, fix)


def layers_have_scheme(schemes: Mapping[str, str], wanted: str) -> Check:
    """Every quantized layer has the scheme that was asked for. `schemes`: layer to scheme, "bf16" if it has none."""
    wrong = {name: scheme for name, scheme in schemes.items() if scheme != wanted and not name.endswith("lm_head")}
    right = sum(scheme == wanted for scheme in schemes.values())
    example = next(iter(wrong.items()), None)
    return invariant(
        right > 0 and not wrong,
        "the scheme of every linear layer in the saved files",
        f"{right} layers are {wanted}" + (f", but {example[0]} is {example[1]}" if example else ""),
        "compare the recipe's `targets` and `ignore` with the model's layer names",
    )


def bytes_as_predicted(
    measured: int,
    predicted: int,
    looked_at: str = "the bytes of all tensors on disk against the prediction from config.json",
) -> Check:
    """The checkpoint's bytes are what the arithmetic says, within 1%."""
    off = abs(measured - predicted) / predicted
    return invariant(
        off <= PREDICTED_BYTES_TOLERANCE,
        looked_at,
        f"{measured:,} bytes against {predicted:,} ({off:.2%} apart)",
        "look at which group of tensors differs: embeddings, lm_head, weights or scales",
    )


def values_are_finite(bad: Sequence[str]) -> Check:
    """No tensor of the checkpoint holds NaN or infinity. `bad`: names of those that do."""
    return invariant(
        not bad,
        "every value of every tensor",
        "all are finite" if not bad else f"NaN or infinity in {', '.join(bad[:3])}",
        "a scale was zero or overflowed: quantize again, in BF16 or float32, and look at the calibration rows",
    )


def reload_is_equal(difference: float, tolerance: float = 0.05) -> Check:
    """The saved checkpoint, loaded again, computes what the model in memory computed.

    difference: mean |logits − logits'| over mean |logits|.
    """
    return invariant(
        difference <= tolerance,
        "the logits of the model in memory against those of the checkpoint loaded again",
        f"they differ by {difference:.3%} of their size (at most {tolerance:.0%} is rounding)",
        "the files are not what was in memory: delete the checkpoint and quantize again",
    )


def gptq_ran(fallbacks: Sequence[str], worked_on: Sequence[str], quantized: int) -> Check:
    """GPTQ worked on every quantized layer, fell back nowhere. quantized: how many layers are quantized."""
    return invariant(
        not fallbacks and len(worked_on) == quantized > 0,
        "llm-compressor's log, layer by layer",
        f"GPTQ worked on {len(worked_on)} of {quantized} quantized layers and fell back in {len(fallbacks)}",
        "raise `dampening_frac` (0.1 helps most models) or give more calibration rows",
    )


def memory_came_back(before_bytes: int, after_bytes: int) -> Check:
    """After the release the process (or device) holds about what it held before the quantize."""
    return invariant(
        after_bytes - before_bytes <= MEMORY_SLACK_BYTES,
        "memory before the model was loaded against memory after it was released",
        f"{before_bytes / 1e6:,.0f} MB before, {after_bytes / 1e6:,.0f} MB after",
        "something still holds the model: a variable of your own, or an output (Out[...]) of a cell",
    )


def server_accepts(findings: Sequence[Finding]) -> Check:
    """The linter found nothing that vLLM would refuse. `findings`: what `checkpoint.lint` returned."""
    errors = [finding for finding in findings if finding.level == "error"]
    return invariant(
        not errors,
        "the checkpoint against what this machine's vLLM accepts",
        "it will load" if not errors else "; ".join(error.what for error in errors),
        errors[0].fix if errors else "",
    )


def holds(recovery: Recovery, variant: str) -> Check:
    """A good scheme loses at most two points on the embedded model."""
    return expectation(
        recovery.difference >= -HOLDS,
        f"{variant} against the baseline on the same {recovery.n} problems",
        f"it is {recovery.difference * 100:+.1f} points away (at most {HOLDS * 100:.0f} points may be lost)",
        "look at the recipe: smoothing before GPTQ, lm_head ignored, calibration on the right domain",
    )


def collapses(recovery: Recovery, variant: str) -> Check:
    """Plain INT8 rounding loses at least twenty points on the embedded model."""
    return expectation(
        recovery.difference <= -COLLAPSE,
        f"{variant} against the baseline on the same {recovery.n} problems",
        f"it is {recovery.difference * 100:+.1f} points away (a collapse is {COLLAPSE * 100:.0f} points or more)",
        "was the base model made with its planted outliers? Delete checkpoints/bf16 and run lab 00 again",
    )


def outliers_found(found: Mapping[str, Sequence[int]], planted: Sequence[int]) -> Check:
    """Every layer behind a norm shows exactly the planted channels. `found`: layer name to its outlier channels."""
    wrong = {layer: channels for layer, channels in found.items() if set(channels) != set(planted)}
    return expectation(
        bool(found) and not wrong,
        f"the outlier channels of {len(found)} layers",
        f"the same channels in every layer: {sorted(planted)}" if not wrong else f"other channels in {wrong}",
        "capture activations on real rows, not on one token",
    )


def less_is_better(smaller: float, larger: float, looked_at: str, names: tuple[str, str], margin: float = 1.0) -> Check:
    """The first figure is below the second by at least the factor `margin`."""
    return expectation(
        smaller * margin < larger,
        looked_at,
        f"{names[0]} {smaller:.4g}, {names[1]} {larger:.4g}",
        "look at the granularity and the rows that you used; the embedded model shows this on any of its rows",
    )


def answer_is(answer: Any, right: float, tolerance: float, hint: str) -> Check | None:
    """A learner's number against the right one, within a relative tolerance; None while the stub `...` still stands."""
    if answer is ...:
        return None
    try:
        off = abs(float(answer) - right) / max(abs(right), 1e-12)
    except (TypeError, ValueError):
        return invariant(False, "your answer", f"{answer!r} is not a number", hint)
    return invariant(
        off <= tolerance, "your answer", f"{float(answer):,.6g}" + (" is right" if off <= tolerance else ""), hint
    )


def choice_is(answer: Any, right: bool | str, hint: str) -> Check | None:
    """A learner's choice (a name, True or False) against the right one; None while the stub `...` still stands."""
    if answer is ...:
        return None
    ok = type(answer) is type(right) and answer == right
    return invariant(ok, "your answer", f"{answer!r}" + (" is right" if ok else ""), hint)


def answers_alike(before: Sequence[str], after: Sequence[str]) -> Check:
    """The quantized model gives most of the answers that the baseline gives."""
    same = sum(a == b for a, b in zip(before, after, strict=True))
    return expectation(
        2 * same >= len(before),
        f"{len(before)} answers before and after",
        f"{same} are the same, word for word",
        "look at the answers above: nonsense after means that the checkpoint is damaged",
    )


def setting_matters(right: float, wrong: float, setting: str, rows: int) -> Check:
    """A wrong setting costs the embedded model at least twenty points."""
    return expectation(
        right - wrong >= COLLAPSE,
        f"the baseline's score with and without {setting}, on {rows} rows",
        f"{right:.3f} with it, {wrong:.3f} without",
        f"the two runs were judged alike: is {setting} really set in one and not in the other?",
    )


def scores_are_whole(evaluations: Sequence[Evaluation]) -> Check:
    """Every evaluation scored rows, not more than it was asked for, and its score is a number."""
    bad = [
        f"{e.request.variant} on {e.request.task.name} ({e.n} rows, score {e.value})"
        for e in evaluations
        if not (math.isfinite(e.value) and 0 < e.n <= (e.request.rows or e.n))
    ]
    rows = sum(e.n for e in evaluations)
    return invariant(
        not bad,
        f"the scores and row counts of {len(evaluations)} evaluations",
        "; ".join(bad) if bad else f"{rows:,} rows were scored, and every score is a number",
        "the data set is empty, or the model computes NaN: look at the samples in results/",
    )
