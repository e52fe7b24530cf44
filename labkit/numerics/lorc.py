"""LoRC, low-rank compensation: a part of what rounding took from a weight is given back, as two thin matrices.

    E = W - Ŵ            what rounding took
    E = U Σ Vᵀ           its singular value decomposition, the largest singular values first
    Û = U_m √Σ_m         [rows, m]
    V̂ = √Σ_m V_mᵀ        [m, columns]
    W ≈ Ŵ + Û V̂

Of all matrices of rank m, Û V̂ is nearest to E (Eckart and Young), so the error that is left falls with each rank, and
nothing is left at the full one. How fast it falls is up to E. Rounding errors are close to random, and a few directions
hold little of a random matrix: the first 8 singular values of 4,096 hold 0.8% of its square. What gains more is an
error with structure: rows that clip, columns that are larger than others.

The factors cost (rows + columns) · m numbers: for a square weight of 4,096 and m = 8, in BF16, 0.06 bits a weight.

The decomposition takes the smaller side's Gram matrix: the eigenvectors of E Eᵀ are U, and Σ_m V_mᵀ = U_mᵀ E. That
takes a third of the time and memory of a full one, and since U_m U_mᵀ E is a projection of E, no inexactness of an
eigenvalue can ever make the error grow with the rank.

Source: Yao et al., "ZeroQuant-V2", arXiv 2303.08302; with FP4 in Wu et al., "ZeroQuant-FP", arXiv 2307.09782.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.errors import DataError, UsageError

BYTES_PER_NUMBER = 2  # the factors are kept in BF16


@dataclass(frozen=True)
class LowRank:
    """Û [rows, m] and V̂ [m, columns]; float32 as they are calculated."""

    U: Tensor
    V: Tensor

    @property
    def rank(self) -> int:
        """m."""
        return self.U.shape[1]

    @property
    def bytes(self) -> int:
        """What both factors take in BF16."""
        return self.bytes_at(self.U.shape[0], self.V.shape[1], self.rank)

    @staticmethod
    def bytes_at(rows: int, columns: int, rank: int) -> int:
        """What the factors of a weight [rows, columns] take in BF16."""
        return BYTES_PER_NUMBER * rank * (rows + columns)

    @property
    def singular_values(self) -> Tensor:
        """Those of E that are kept, [m], the largest first: Û = U √Σ, and the columns of U are of length 1."""
        return self.U.square().sum(dim=0)

    def product(self) -> Tensor:
        """Û V̂, [rows, columns]."""
        return self.U @ self.V

    def to(self, dtype: torch.dtype) -> LowRank:
        """The same in another dtype."""
        return LowRank(self.U.to(dtype), self.V.to(dtype))

    def at(self, rank: int) -> LowRank:
        """The same at a smaller rank: the first columns of Û and rows of V̂. Raises UsageError for a larger one."""
        if not 1 <= rank <= self.rank:
            raise UsageError(f"rank is {rank}, and this correction has {self.rank}.", fix=f"Use 1 to {self.rank}.")
        return LowRank(self.U[:, :rank], self.V[:rank])


def low_rank_correction(W: Tensor, W_hat: Tensor, rank: int = 8) -> LowRank:
    """Û and V̂ of E = W - Ŵ, calculated in float32.

    W, W_hat: [rows, columns]. Errors: UsageError for shapes that differ, or a rank above the smaller side; DataError
    for NaN or infinity.
    """
    if W.ndim != 2 or W.shape != W_hat.shape:
        raise UsageError(f"W is {list(W.shape)} and Ŵ is {list(W_hat.shape)}.", fix="Give two matrices of one shape.")
    if not 1 <= rank <= min(W.shape):
        raise UsageError(
            f"rank is {rank}, and a matrix of shape {list(W.shape)} has {min(W.shape)} at most.",
            fix=f"Use 1 to {min(W.shape)}; the paper's is 8.",
        )
    E = W.to(torch.float32, copy=True).sub_(W_hat)  # [rows, columns]; the only float32 copy
    if not bool(E.isfinite().all()):
        raise DataError(
            f"W - Ŵ, of shape {list(E.shape)}, holds NaN or infinity.",
            "Nothing can make up for such an error.",
            "Look at both: a damaged checkpoint, or a scale that overflowed.",
        )
    if E.shape[0] > E.shape[1]:
        transposed = _factors(E.T, rank)
        return LowRank(transposed.V.T, transposed.U.T)
    return _factors(E, rank)


def _factors(E: Tensor, rank: int) -> LowRank:
    """Û and V̂ of a matrix that is no taller than it is wide."""
    _, vectors = torch.linalg.eigh(E @ E.T)  # [rows, rows], eigenvalues ascending
    U = vectors[:, -rank:].flip(-1)  # [rows, m], the largest first
    scaled = U.T @ E  # [m, columns] = Σ_m V_mᵀ
    sigma = torch.linalg.vector_norm(scaled, dim=1)  # [m]
    root = sigma.sqrt()
    return LowRank(U * root, scaled / root.where(root > 0, 1.0)[:, None])
