"""What a judgement is: of what kind, whether it is ok, and in plain words what was looked at and found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
    """A check that holds for the embedded model on all rows of its profile."""
    return Check("expectation", bool(ok), looked_at, found, fix)
