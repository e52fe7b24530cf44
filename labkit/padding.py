"""Rows of unequal length as rectangular batches, for models in memory.

Rows are padded on the right. Under causal attention no token sees what comes after it, so padding changes no real
token and needs no mask; whoever reads a result leaves the padded places out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.errors import DataError

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Batch:
    """ids: [rows, tokens], int64. real: [rows, tokens], False on padding."""

    ids: torch.Tensor
    real: torch.Tensor


def batches(rows: Sequence[Sequence[int]], device: Any = "cpu", most_tokens: int = BATCH_TOKENS) -> Iterator[Batch]:
    """The rows in their order, as many at a time as `most_tokens` with their padding allow, at least one.

    Raises DataError if a row is empty.
    """
    import torch

    if not all(rows):
        raise DataError("a row has no tokens", why="there is nothing to compute", fix="drop empty rows")
    start = 0
    while start < len(rows):
        stop, longest = start, 0
        while stop < len(rows) and (stop == start or max(longest, len(rows[stop])) * (stop - start + 1) <= most_tokens):
            longest = max(longest, len(rows[stop]))
            stop += 1
        ids = torch.zeros(stop - start, longest, dtype=torch.long)
        real = torch.zeros(stop - start, longest, dtype=torch.bool)
        for i, row in enumerate(rows[start:stop]):
            ids[i, : len(row)] = torch.tensor(list(row))
            real[i, : len(row)] = True
        yield Batch(ids.to(device), real.to(device))
        start = stop
