"""Perplexity of a model in memory, row by row, so that two models can be compared on the same rows.

    perplexity = exp( - Σ log p(token | the tokens before it) / number of tokens )

Each row stands by itself; what is `given` of it is read and not predicted. The figure depends on the tokenizer, the
length of the rows and what stands at their beginning, so it compares models on one set of rows, never across sets.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from labkit.errors import DataError
from labkit.estimates import ratio_stderr
from labkit.padding import batches


@dataclass(frozen=True)
class Row:
    """Token ids of held-out text. given: how many at the beginning are not predicted, at least the first."""

    ids: tuple[int, ...]
    given: int = 1

    @property
    def predicted(self) -> int:
        """How many tokens count."""
        return len(self.ids) - self.given


@dataclass(frozen=True)
class Losses:
    """What a model made of some rows.

    scores: of each row, the log-likelihood per predicted token in nats; tokens: how many each row predicts.
    """

    scores: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        """Over all predicted tokens of all rows."""
        return math.exp(-sum(s * n for s, n in zip(self.scores, self.tokens, strict=True)) / sum(self.tokens))

    @property
    def stderr(self) -> float:
        """The perplexity's standard error, from how rows differ."""
        return self.perplexity * ratio_stderr(self.scores, self.tokens)


def losses(model: Any, rows: Sequence[Row]) -> Losses:
    """The losses of a causal language model on rows of tokens.

    Raises DataError for rows that predict nothing, and if the model answers NaN.
    """
    import torch

    if not rows or any(not 1 <= row.given < len(row.ids) for row in rows):
        raise DataError(
            f"there are {len(rows)} rows, and each must predict at least one token after the first",
            why="a perplexity is a mean over predicted tokens",
            fix="use longer text",
        )
    scores: list[float] = []
    with torch.no_grad():
        given = iter(row.given for row in rows)
        for batch in batches([row.ids for row in rows], model.device):
            logits = model(input_ids=batch.ids, use_cache=False).logits[:, :-1]  # [rows, tokens - 1, vocabulary]
            nats = torch.nn.functional.cross_entropy(
                logits.float().transpose(1, 2), batch.ids[:, 1:], reduction="none"
            )  # [rows, tokens - 1]; entry t is the loss of token t + 1
            counts = batch.real[:, 1:].clone()
            for row in counts:
                row[: next(given) - 1] = False
            scores += (-(nats * counts).sum(1) / counts.sum(1)).tolist()
    if bad := sum(not math.isfinite(score) for score in scores):
        raise DataError(
            f"the model gave NaN or infinity on {bad} of {len(rows)} rows",
            why="no perplexity can be calculated",
            fix="look for an overflow: load the model in bfloat16, and look at its weights",
        )
    return Losses(tuple(scores), tuple(row.predicted for row in rows))
