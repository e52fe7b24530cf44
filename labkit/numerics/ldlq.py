"""LDLQ: GPTQ's grid points from one Cholesky factor of H, with no inverse.

GPTQ asks which reply of the later columns makes up best for a column's rounding error, and needs H⁻¹ for the answer.
The same can be asked of the column whose turn it is: what should it add, given the errors that stand already? With
H = R Rᵀ, R upper triangular, the error of a whole row is

    (w - ŵ) H (w - ŵ)ᵀ = ||(w - ŵ) R||² = Σ_k ( R_kk · [ w_k - ŵ_k + Σ_{i<k} (w_i - ŵ_i) R_ik / R_kk ] )²

and k's term holds no later column. So columns go from left to right, and each is rounded after the errors before it
were added in:

    ŵ_k = quant( w_k + Σ_{i<k} (w_i - ŵ_i) · R_ik / R_kk )

That is GPTQ, column for column (Chee et al., "QuIP", arXiv 2307.13304, theorem 6), but for the order in which floats
are summed. It is cheaper: the factor takes d³/3 operations, an inverse and the inverse's factor would take d³ more.
Errors are gathered by one matrix product for a block of columns and one product with a vector for each column in it, so
a column's step writes one column, where GPTQ's writes all that follow.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Round = Callable[[Tensor, int], Tensor]  # column k before rounding, [rows], and k, to its grid points Ŵ[:, k], [rows]


def upper_factor(H: Tensor, in_place: bool = False) -> Tensor | None:
    """R, upper triangular with H = R Rᵀ, float32 [d, d]; None if H is not positive definite.

    torch has H = L Lᵀ with L lower triangular: read from the last row and column to the first, one is the other.

    in_place: H is float32 and its memory becomes R's, so that no second [d, d] is needed: H is lost, R or not.
    """
    H = H if in_place else H.float().clone()
    L = _turn(H).mT  # H is symmetric; LAPACK keeps columns together, and so needs no copy of its own
    failed = torch.empty((), dtype=torch.int32, device=H.device)
    torch.linalg.cholesky_ex(L, out=(L, failed))
    return None if int(failed) or not bool(L.isfinite().all()) else _turn(L)


def _turn(M: Tensor, block_size: int = 128) -> Tensor:
    """M [d, d] in place from its last row and column to its first, as `M.flip(0, 1)` without a second M."""
    d = len(M)
    for start in range(0, d // 2, block_size):
        stop = min(start + block_size, d // 2)
        upper, lower = M[start:stop], M[d - stop : d - start]
        was = upper.flip(0, 1)
        upper.copy_(lower.flip(0, 1))
        lower.copy_(was)
    if d % 2:
        M[d // 2] = M[d // 2].flip(0)
    return M


def ldlq(W: Tensor, R: Tensor, round_column: Round, block_size: int = 128) -> tuple[Tensor, Tensor]:
    """Ŵ [rows, d] and each row's error (w - ŵ) H (w - ŵ)ᵀ [rows], from W [rows, d] and `upper_factor` of its H.

    block_size: columns for each matrix product, a matter of speed only.
    """
    rows, d = W.shape
    columns = W.float().T.clone(memory_format=torch.contiguous_format)  # [d, rows]: Wᵀ, from the top on replaced by Ŵᵀ
    error = torch.empty_like(columns)  # (W - Ŵ)ᵀ
    lost = torch.zeros(rows, device=W.device)
    for start in range(0, d, block_size):
        stop = min(start + block_size, d)
        feedback = (R[:stop, start:stop] / R.diagonal()[start:stop]).T.contiguous()  # R_ik / R_kk at [k - start, i]
        block = columns[start:stop] + feedback[:, :start] @ error[:start]  # [block, rows]
        for k in range(start, stop):
            w = torch.addmv(block[k - start], error[start:k].T, feedback[k - start, start:k])
            found = round_column(w, k)
            torch.sub(columns[k], found, out=error[k])
            columns[k] = found
            lost += (R[k, k] * (w - found)).square()
    return columns.T.contiguous(), lost
