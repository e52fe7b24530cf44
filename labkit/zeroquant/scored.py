"""What one scheme of the grid scored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from labkit.perplexity import Losses

if TYPE_CHECKING:
    from labkit.evaluation import Evaluation
    from labkit.simulation import Method, Scheme


@dataclass(frozen=True)
class Scored:
    """One scheme, its weights rounded by one method. losses: by text; exact: problems answered, None if not asked."""

    scheme: Scheme
    method: Method
    bits_per_weight: float
    losses: Mapping[str, Losses]
    exact: Evaluation | None = None

    @property
    def perplexity(self) -> float:
        """The mean over the texts, as the paper's tables have it."""
        return sum(found.perplexity for found in self.losses.values()) / len(self.losses)

    @property
    def stderr(self) -> float:
        """The mean's standard error; the texts are independent of one another."""
        return math.sqrt(sum(found.stderr**2 for found in self.losses.values())) / len(self.losses)

    @property
    def rows(self) -> int:
        """Rows of all texts together."""
        return sum(len(found.scores) for found in self.losses.values())


def pooled(scored: Scored) -> Losses:
    """The rows of all texts as one list, in the order of the texts."""
    found = scored.losses.values()
    return Losses(tuple(s for each in found for s in each.scores), tuple(n for each in found for n in each.tokens))
