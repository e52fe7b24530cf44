"""How far a quantized model's next-token distributions are from the baseline's.

A sharper instrument than accuracy: every token of every row counts, and it moves long before an answer flips. It says
that something changed, not that anything was lost; for that, evaluate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def divergences_by_row(
    baseline: Path, candidates: Sequence[Path], rows: Sequence[Sequence[int]], device: str = "cpu"
) -> list[list[float]]:
    """For each candidate checkpoint its KL from the baseline on each token row, in nats a token.

    One model is in memory at a time, and of the baseline its log-probabilities: 4 bytes for each of a row's tokens and
    each entry of the vocabulary.
    """

    def of(folder: Path, use: Callable[[Any], Any]) -> Any:
        model = checkpoint.load(folder).to(device).eval()
        try:
            return use(model)
        finally:
            release(model)

    reference = of(baseline, lambda model: log_probabilities(model, rows))

    def far(model: Any) -> list[float]:
        pairs = zip(reference, rows, strict=True)
        return [mean_kl([p], log_probabilities(model, [row])) for p, row in pairs]

    return [of(folder, far) for folder in candidates]


def divergences(
    baseline: Path, candidates: Sequence[Path], rows: Sequence[Sequence[int]], device: str = "cpu"
) -> list[float]:
    """Mean KL of each candidate checkpoint from the baseline over all tokens of the rows; see `divergences_by_row`."""
    tokens = [len(row) for row in rows]
    by_row = divergences_by_row(baseline, candidates, rows, device)
    return [sum(kl * n for kl, n in zip(each, tokens, strict=True)) / sum(tokens) for each in by_row]
