"""How far a quantized model's next-token distributions are from the baseline's.

A sharper instrument than accuracy: every token of every row counts, and it moves long before an answer flips. It says
that something changed, not that anything was lost; for that, evaluate.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import checkpoint
from labkit.memory import release

if TYPE_CHECKING:
    import torch


def log_probabilities(model: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Log-probabilities of every next token for each row of ids: a list of [tokens, vocabulary], float32, CPU."""
    import torch

    with torch.no_grad():
        return [
            model(input_ids=torch.tensor([list(row)], device=model.device)).logits[0].float().log_softmax(-1).cpu()
            for row in rows
        ]


def mean_kl(baseline: Sequence[torch.Tensor], candidate: Sequence[torch.Tensor]) -> float:
    """The mean over all tokens of KL(baseline ‖ candidate), in nats; both are lists of log [tokens, vocabulary]."""
    total, tokens = 0.0, 0
    for p, q in zip(baseline, candidate, strict=True):
        total += float((p.exp() * (p - q)).sum())  # sum over tokens and vocabulary
        tokens += len(p)
    return total / tokens


def divergences(
    baseline: Path, candidates: Sequence[Path], rows: Sequence[Sequence[int]], device: str = "cpu"
) -> list[float]:
    """Mean KL of each candidate checkpoint against the baseline on token rows; one model in memory at a time."""

    def of(folder: Path) -> list[torch.Tensor]:
        model = checkpoint.load(folder).to(device).eval()
        try:
            return log_probabilities(model, rows)
        finally:
            release(model)

    reference = of(baseline)
    return [mean_kl(reference, of(folder)) for folder in candidates]
