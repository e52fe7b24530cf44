"""What a scheme rounds, and the 14 schemes that ZeroQuant-FP compares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from labkit.numerics import E2M1, E4M3, INT4, INT8, ExponentRounding, Format, Reading

Constraint = Literal["", "M1", "M2"]
Method = Literal["gptq", "rtn"]
METHODS: tuple[Method, ...] = ("gptq", "rtn")

PAPER_GROUP = 256  # columns that share a scale
PAPER_RANK = 8
BLOCK_ROWS = 64  # rows that share M2's real scale; the paper leaves the number open


@dataclass(frozen=True)
class Weights:
    """How weights are rounded, without any correction: layers rounded so can be shared by several schemes.

    group: columns that share a scale, the largest divisor of a layer's columns up to it; 0 for whole rows. constraint:
    M1 or M2 on the scales, exponents rounded as `rounding` says. reading: what S is in the formula (`numerics.pow2`);
    "" takes for each the one that makes no scale smaller, so that nothing clips: M1 of S, M2 of 1/S.
    """

    format: Format
    group: int = PAPER_GROUP
    constraint: Constraint = ""
    rounding: ExponentRounding = "ceil"
    reading: Reading | Literal[""] = ""

    @property
    def reading_taken(self) -> Reading:
        """The reading, or the one that stands for ""."""
        return self.reading or ("1/S" if self.constraint == "M2" else "S")


@dataclass(frozen=True)
class Scheme:
    """One row of the grid. weights, activations: None for 16 bits. rank: LoRC's, 0 for none."""

    weights: Weights | None = None
    activations: Format | None = None
    rank: int = 0

    @property
    def bits(self) -> str:
        """As papers write it: W4A8."""
        weights = self.weights.format.bits if self.weights else 16
        return f"W{weights}A{self.activations.bits if self.activations else 16}"

    @property
    def formats(self) -> str:
        """As the paper writes it, weights first: FP–FP, then constraint and correction; no word for 16 bits."""
        weights = self.weights
        families = [_family(fmt) for fmt in (weights and weights.format, self.activations) if fmt]
        more = [weights.constraint if weights else "", "LoRC" if self.rank else ""]
        return " ".join(filter(None, ["–".join(families), *more])) or "–"

    @property
    def variant(self) -> str:
        """The name in the ledger: w4a8-fp-fp-m1-lorc."""
        if self == Scheme():
            return "bf16"
        parts = [self.bits, *self.formats.replace("–", " ").split()]
        return "-".join(parts).lower()


@dataclass(frozen=True)
class Applied:
    """What a model computes by. rows: that GPTQ was calibrated on, 0 for round-to-nearest.

    groups: how many columns share a scale, of each size that a layer has, the largest first; () for 16 bits.
    """

    scheme: Scheme
    method: Method
    rows: int
    dampening_frac: float
    groups: tuple[int, ...]

    def settings(self) -> dict[str, Any]:
        """What a variant's name does not say, for the ledger."""
        found: dict[str, Any] = {"method": self.method, "rank": self.scheme.rank, "groups": list(self.groups)}
        if self.method == "gptq":
            found |= {"calibration_rows": self.rows, "dampening_frac": self.dampening_frac}
        if (weights := self.scheme.weights) and weights.constraint:
            found |= {"rounding": weights.rounding, "reading": weights.reading_taken}
        return found


def _family(fmt: Format) -> str:
    return "FP" if fmt.exponent_bits else "INT"


def paper_grid(group: int = PAPER_GROUP, rank: int = PAPER_RANK) -> tuple[Scheme, ...]:
    """The 14 rows of the paper's tables, in their order; rows that share their rounded weights stand together."""
    int8, fp8 = Weights(INT8, group), Weights(E4M3, group)
    int4, fp4 = Weights(INT4, group), Weights(E2M1, group)
    four_bits = [
        Scheme(weights, activations)
        for weights, activations in (
            (int4, INT8),
            (int4, E4M3),
            (fp4, E4M3),
            (replace(fp4, constraint="M1"), E4M3),
            (replace(fp4, constraint="M2"), E4M3),
        )
    ]
    return (
        Scheme(),
        Scheme(int8, INT8),
        Scheme(int8, E4M3),
        Scheme(fp8, E4M3),
        *(row for scheme in four_bits for row in (scheme, replace(scheme, rank=rank))),
    )
