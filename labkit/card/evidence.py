"""What a workspace knows of a checkpoint: its manifest, its tensors, and the ledger's lines about it.

A line counts only if it was measured after the checkpoint was made: an older one is of another checkpoint of the same
name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.checkpoint import Inspection, inspect, short_name
from labkit.compare import Recovery, compare_evaluations
from labkit.evaluation import Evaluation, load_evaluation
from labkit.ledger import Measurement
from labkit.manifest import MANIFEST, read_manifest
from labkit.profiles import BASELINE
from labkit.workspace import Workspace

QUANTIZED = "seconds"  # the metric of the line that is written when a checkpoint has been made


@dataclass(frozen=True)
class Score:
    """A task's headline figure. baseline: the base model's under the same settings. recovery: row by row, if both
    evaluations' samples are still there."""

    measured: Measurement
    baseline: Measurement | None
    recovery: Recovery | None


@dataclass(frozen=True)
class Evidence:
    """What is known of one checkpoint.

    variant: "" if labkit did not make it. baseline_bytes: of the base model's tensors, if that was measured. quantized:
    what making it took, by metric. speeds: throughput and latency. older: headline lines that are left out because the
    checkpoint was made again since.
    """

    model: str
    variant: str
    manifest: Mapping[str, Any]
    inspection: Inspection
    baseline_bytes: float | None
    quantized: Mapping[str, Measurement]
    scores: tuple[Score, ...]
    speeds: tuple[Measurement, ...]
    older: int


def gather(folder: Path, workspace: Workspace) -> Evidence:
    """Collects what this workspace knows of the checkpoint in `folder`.

    Of a folder that labkit did not make that is its tensors only. Raises CheckpointError if it is no checkpoint.
    """
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    model, variant = str(manifest.get("base") or short_name(str(folder))), str(manifest.get("variant") or "")
    lines = workspace.ledger.headlines(model=model) if variant else []
    own = [line for line in lines if line.variant == variant]
    base = workspace.ledger.newest(model=model, variant=BASELINE) if variant else []  # of whatever purpose
    made = max((line.time for line in own if line.kind == "quantize" and line.metric == QUANTIZED), default="")
    fresh = [line for line in own if line.time >= made or line.kind in ("quantize", "size")]
    saved = list(_evaluations(workspace))
    return Evidence(
        model,
        variant,
        manifest,
        inspect(folder),
        next((line.value for line in base if line.metric == "bytes"), None),
        {line.metric: line for line in fresh if line.kind == "quantize"},
        tuple(_score(line, base, saved) for line in fresh if line.kind in ("accuracy", "perplexity")),
        tuple(line for line in fresh if line.kind in ("throughput", "latency")),
        len(own) - len(fresh),
    )


def _score(line: Measurement, base: Iterable[Measurement], saved: list[Evaluation]) -> Score:
    same = [b for b in base if (b.task, b.metric, b.settings) == (line.task, line.metric, line.settings)]
    baseline = same[-1] if same else None
    mine, theirs = _saved(line, saved), _saved(baseline, saved)
    recovery = compare_evaluations(theirs, mine) if mine and theirs and mine.versions == theirs.versions else None
    return Score(line, baseline, recovery)


def _evaluations(workspace: Workspace) -> Iterable[Evaluation]:
    for path in sorted(workspace.results.glob("*/*.jsonl")):
        if path.with_suffix(".json").is_file():
            yield load_evaluation(path)


def _saved(line: Measurement | None, saved: list[Evaluation]) -> Evaluation | None:
    """The evaluation that a ledger line came from."""
    if line is None:
        return None
    wanted = (line.variant, line.task, line.value, line.stderr, line.n, line.settings)
    for found in saved:
        request = found.request
        if (request.variant, request.task.name, found.value, found.stderr, found.n, found.settings) == wanted:
            return found
    return None
