"""Comparing two evaluations: refused unless both were asked the same, then row by row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.compare.recovery import MARGIN, Recovery, compare
from labkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Set

    from labkit.evaluation import Evaluation, Sample


def compare_evaluations(
    baseline: Evaluation,
    candidate: Evaluation,
    *,
    margin: float = MARGIN,
    seed: int = 0,
    differ: Set[str] = frozenset(),
    first: int | None = None,
) -> Recovery:
    """Recovery of one evaluation against another, from their samples.

    first: compare the first rows only, as if `limit` had been that. differ: settings that differ on purpose
    (`{"chat_template", "add_bos"}` for a trap); with them prompts may differ.
    Raises UsageError when the two were asked different things: another task, metric, setting, row or prompt.
    """
    from labkit.evaluation import load_samples

    unequal = [name for name in _differences(baseline, candidate) if name not in differ]
    if unequal:
        raise UsageError(
            f"{_name(baseline)} and {_name(candidate)} differ in {', '.join(unequal)}",
            why="the score would show that difference, not the quantization",
            fix="evaluate both in the same way, in one call",
        )
    before, after = load_samples(baseline.samples), load_samples(candidate.samples)
    if [(s.doc_id, s.weight) for s in before] != [(s.doc_id, s.weight) for s in after]:
        raise UsageError(
            f"{_name(baseline)} and {_name(candidate)} scored other rows ({len(before)} and {len(after)})",
            why="the comparison is row by row",
            fix="evaluate both with one limit and the same data",
        )
    if not differ:
        _same_prompts(before, after)
    kind = baseline.request.task.kind
    scores = [[sample.score for sample in samples[:first]] for samples in (before, after)]
    return compare(*scores, margin=margin, seed=seed, weights=[s.weight for s in before[:first]], kind=kind)


def _differences(baseline: Evaluation, candidate: Evaluation) -> list[str]:
    """What the two evaluations were not asked alike: names of task fields, settings and package versions."""
    first, second = baseline.request.task, candidate.request.task
    names = [name for name in ("name", "metric", "filter") if getattr(first, name) != getattr(second, name)]
    for mine, theirs in ((baseline.settings, candidate.settings), (baseline.versions, candidate.versions)):
        names += sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    return list(dict.fromkeys(names))


def _same_prompts(first: list[Sample], second: list[Sample]) -> None:
    changed = [s.doc_id for s, t in zip(first, second, strict=True) if s.prompt_sha256 != t.prompt_sha256]
    if changed:
        raise UsageError(
            f"{len(changed)} of {len(first)} prompts differ, the first in row {changed[0]}",
            why="the two models were asked different questions",
            fix="give both checkpoints the baseline's tokenizer and chat template",
        )


def _name(evaluation: Evaluation) -> str:
    return f"{evaluation.request.variant} on {evaluation.request.task.name}"
