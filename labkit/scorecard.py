"""The scorecard: every variant of a workspace in one table and one picture, from what was measured of it.

Nothing is computed twice: a row is what the model card of that variant would say. A figure that was not measured is a
dash, and one that is older than the checkpoint does not count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.card import Evidence, gather
from labkit.checkpoint import Inspection
from labkit.estimates import Z_95
from labkit.figures import Figure, tradeoff
from labkit.ledger import SPEEDUP, Measurement
from labkit.manifest import MANIFEST
from labkit.profiles import BASELINE
from labkit.workspace import Workspace

RATE = "output_tok_per_s"


@dataclass(frozen=True)
class Row:
    """One variant. scheme: that of most of its layers. bits_per_weight: 8 × its tensors' bytes over its parameters.

    accuracy: on `task`, n rows, in [0, 1]; interval: half of its 95% interval. verdict: of the recovery, "baseline" for
    the base model, "" if the two were not compared. output_tok_per_s: at the lab's largest load; speedup: over the
    baseline's. None: not measured.
    """

    model: str
    variant: str
    scheme: str
    bytes: int
    bits_per_weight: float
    task: str
    accuracy: float | None
    interval: float | None
    n: int | None
    recovery: float | None
    verdict: str
    output_tok_per_s: float | None
    speedup: float | None
    quantize_seconds: float | None


def scorecard(workspace: Workspace, task: str = "") -> list[Row]:
    """A row for each checkpoint of the workspace, model by model, those that were scored first, then by size.

    task: whose accuracy is shown where it was measured, else the first that was. Raises CheckpointError for a folder
    that is no checkpoint any more.
    """
    folders = sorted(path.parent for path in workspace.checkpoints.glob(f"*/{MANIFEST}"))
    found = [_row(gather(folder, workspace), task) for folder in folders]
    measured = Counter(row.model for row in found for figure in (row.accuracy, row.speedup) if figure is not None)
    return sorted(
        found,
        key=lambda row: (
            -measured[row.model],
            row.model,
            row.variant != BASELINE,
            row.accuracy is None and row.output_tok_per_s is None,
            row.bytes,
            row.variant,
        ),
    )


def picture(rows: Sequence[Row]) -> Figure | None:
    """Accuracy against bits per weight, with the speed-up beside each point; None if nothing was evaluated.

    Of the model with most scored variants. Where another model stands in for its speed, as the labs' large random one
    does for the embedded one, the speed-ups are that model's under the same scheme, and the description says so.
    """
    scored = [row for row in rows if row.accuracy is not None]
    if not scored:
        return None
    models = [row.model for row in scored]
    model = max(dict.fromkeys(models), key=models.count)
    chosen = [row for row in scored if row.model == model]
    speed, source = speedups(rows, model)
    told = "" if not speed else f" The numbers are speed-ups{'' if source == model else f', measured on {source}'}."
    best = [row for row in chosen if row.verdict == "recovered"]
    least = min(best, key=lambda row: row.bits_per_weight) if best else None
    said = f" Smallest that recovered: {least.variant}, {least.bits_per_weight:.1f} bits." if least else ""
    return tradeoff(
        {
            row.variant: (row.bits_per_weight, row.accuracy or 0.0, row.interval or 0.0, speed.get(row.scheme))
            for row in chosen
        },
        next((row.accuracy for row in chosen if row.variant == BASELINE), None),
        f"Accuracy of {model} on {chosen[0].task} against bits per weight, with 95% intervals.{said}{told}",
    )


def speedups(rows: Sequence[Row], model: str) -> tuple[dict[str, float], str]:
    """Speed-ups over the baseline by scheme, and the model that they were measured on: `model`, else the one that
    stands in for its speed; ({}, "") if there are none."""
    measured = [row for row in rows if row.speedup]
    source = next((row.model for row in sorted(measured, key=lambda row: row.model != model)), "")
    return {row.scheme: row.speedup for row in measured if row.model == source and row.speedup}, source


def parameters(inspection: Inspection) -> int:
    """How many parameters a checkpoint stands for: those of its linear layers by shape, the others by their bytes."""
    linear = sum(math.prod(layer.shape) for layer in inspection.layers)
    return linear + sum(
        inspection.group(name).bytes // _width(inspection.group(name).dtypes) for name in ("embeddings", "other")
    )


def _width(dtypes: Sequence[str]) -> int:
    return 4 if list(dtypes) == ["F32"] else 2


def _row(evidence: Evidence, task: str) -> Row:
    scores = [score for score in evidence.scores if score.measured.kind == "accuracy"]
    score = next((s for s in scores if s.measured.task == task), scores[0] if scores else None)
    measured = score.measured if score else None
    recovery = score.recovery if score else None
    compared = recovery is not None and not math.isnan(recovery.ratio)
    verdict = "baseline" if evidence.variant == BASELINE else recovery.verdict if recovery else ""
    error = measured.stderr if measured else None
    seconds = evidence.quantized.get("seconds")
    return Row(
        model=evidence.model,
        variant=evidence.variant,
        scheme=next((s for s, _ in Counter(evidence.inspection.schemes.values()).most_common()), ""),
        bytes=evidence.inspection.total_bytes,
        bits_per_weight=8 * evidence.inspection.total_bytes / parameters(evidence.inspection),
        task=measured.task if measured else "",
        accuracy=measured.value if measured else None,
        interval=None if error is None else Z_95 * error,
        n=measured.n if measured else None,
        recovery=recovery.ratio if recovery and compared and evidence.variant != BASELINE else None,
        verdict=verdict,
        output_tok_per_s=_newest(evidence.speeds, RATE),
        speedup=_newest(evidence.speeds, SPEEDUP),
        quantize_seconds=seconds.value if seconds else None,
    )


def _newest(lines: Sequence[Measurement], metric: str) -> float | None:
    return next((line.value for line in reversed(lines) if line.metric == metric), None)


def cells(row: Row) -> dict[str, str]:
    """A row as text, a dash where nothing was measured; the names are the table's header."""

    def told(value: float | None, form: str) -> str:
        return "–" if value is None else form.format(value)

    accuracy = told(row.accuracy, "{:.3f}") + ("" if row.interval is None else f" ± {row.interval:.3f}")
    return {
        "model": row.model,
        "variant": row.variant,
        "MB": f"{row.bytes / 1e6:,.1f}",
        "bits per weight": f"{row.bits_per_weight:.2f}",
        "accuracy ± 95%": accuracy,
        "n": told(row.n, "{:,}"),
        "recovery": told(row.recovery, "{:.1%}"),
        "verdict": row.verdict or "–",
        "output tok/s": told(row.output_tok_per_s, "{:,.0f}" if (row.output_tok_per_s or 0) >= 10 else "{:.1f}"),
        "speed-up": told(row.speedup, "{:.2f}×"),
        "quantized in": told(row.quantize_seconds, "{:,.1f} s"),
    }
