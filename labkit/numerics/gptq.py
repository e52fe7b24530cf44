"""GPTQ: round the weights one column after another, and let the columns not yet rounded make up for each error.

Round-to-nearest makes each weight's error as small as it can be. What counts is the layer's output, so GPTQ looks for
grid points Ŵ with a small ||W X - Ŵ X||² on calibration inputs X. That error is quadratic in W, with the same second
derivatives for each row: the Hessian H = 2 X Xᵀ, which says which input channels are large and which go together. When
weight w_q of a row is rounded, the best reply of the weights still free has a closed form (Optimal Brain Surgeon):

    δ = - (w_q - quant(w_q)) / [H⁻¹]_qq · (H⁻¹)_q,:

Three ideas make it fast enough for large layers. All rows go through the columns in the same order, so they share H⁻¹.
The rows of H⁻¹ that the process needs, after each column's removal, are the rows of one upper Cholesky factor U of H⁻¹
(H⁻¹ = Uᵀ U), so the inverse is never updated and nothing drifts. And the updates of far columns wait until a block of
columns is done, then are made by one matrix product.

The trade-off: GPTQ needs calibration data like what the model will see, takes minutes where RTN takes seconds, and fits
the weights to that data. At 8 bits with a scale for each row it gains a little over RTN; at 4 bits it gains much.

Inputs that repeat themselves make H singular. Damping adds a share of H's mean diagonal to its diagonal: more of it is
more stable and brings the result closer to RTN. Where H can't be inverted, llm-compressor falls back to RTN and says so
only in its log; here it is an error.

Source: Frantar et al., "GPTQ", arXiv 2210.17323, algorithm 1. llm-compressor's `actorder="static"` takes the columns in
the order of H's falling diagonal; here, as with `actorder=None`, they are taken from left to right.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.errors import DataError, UsageError
from labkit.numerics.formats import Format, dequantize, quantize

DAMPENING = 0.01  # the paper's


def hessian(x: Tensor) -> Tensor:
    """H = 2/N · X Xᵀ of a layer's inputs, float32 [d, d]; the factor 2/N changes no result.

    x: [..., d], inputs of the layer over all calibration tokens. The paper's X is its transpose, [d, N].
    """
    tokens = x.reshape(-1, x.shape[-1]).float()  # [N, d]
    return 2 / tokens.shape[0] * tokens.T @ tokens  # [d, N] @ [N, d] -> [d, d]


def gptq(
    W: Tensor,
    H: Tensor,
    scale: Tensor,
    fmt: Format,
    *,
    dampening_frac: float = DAMPENING,
    block_size: int = 128,
) -> Tensor:
    """The grid points of W chosen by GPTQ, columns from left to right; `dequantize(Q, scale)` gives Ŵ.

    W: [rows, d]; H: [d, d] from `hessian`; scale: for this W, [rows, 1] or [1] from `scale_for`, or [rows, d] from
    `for_each_column` (it stays fixed); dampening_frac: share of H's mean diagonal added to the diagonal; block_size:
    columns for each lazy update, a matter of speed only.
    Returns Q [rows, d] in the format's dtype (int8, float8; float32 where torch has none).
    Errors: UsageError for shapes that don't fit, DataError if H can't be inverted.
    """
    d = W.shape[-1]
    if W.ndim != 2 or H.shape != (d, d):
        raise UsageError(
            f"W is {list(W.shape)} and H is {list(H.shape)}; H must be [columns of W, columns of W].",
            fix="Calculate H from the inputs of this very layer.",
        )
    if scale.shape[-1] not in (1, d):
        raise UsageError(
            f"W is {list(W.shape)} and the scale is {list(scale.shape)}, neither one for a row nor one for a column.",
            fix="Spread the scales of groups with `for_each_column`.",
        )
    scale = scale.expand(*scale.shape[:-1], d)  # a view: no memory
    dead = H.diagonal() == 0  # [d]: input channels that were zero on all calibration data
    W = W.float().masked_fill(dead, 0.0)  # [rows, d], a working copy; nothing says how a dead column should be rounded
    U = _inverse_cholesky(H.float(), dead, dampening_frac)  # [d, d], upper
    Q = torch.empty_like(W, dtype=fmt.dtype or W.dtype)  # [rows, d]
    for start in range(0, d, block_size):
        block = slice(start, min(start + block_size, d))
        rest = slice(block.stop, d)
        Q[:, block], E = _quantize_block(W[:, block].clone(), U[block, block], scale[..., block], fmt)
        W[:, rest] -= E @ U[block, rest]  # [rows, block] @ [block, rest]: the lazy update of all later columns
    return Q


def _quantize_block(W: Tensor, U: Tensor, scale: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    """Round a block's columns in turn. W: [rows, B], changed in place; U: [B, B]; scale: [rows, B] or [B].

    Returns Q and E, [rows, B] each.
    """
    Q = torch.empty_like(W, dtype=fmt.dtype or W.dtype)
    E = torch.empty_like(W)
    for j in range(W.shape[1]):
        w = W[:, j : j + 1]  # [rows, 1]
        s = scale[..., j : j + 1]  # [rows, 1] or [1]
        q = quantize(w, s, fmt)  # [rows, 1]
        e = (w - dequantize(q, s)) / U[j, j]  # [rows, 1]: the error in units of what it costs
        W[:, j:] -= e * U[j, j:]  # [rows, 1] · [B - j]: the later columns of the block reply at once
        Q[:, j : j + 1], E[:, j : j + 1] = q, e
    return Q, E


def _inverse_cholesky(H: Tensor, dead: Tensor, dampening_frac: float) -> Tensor:
    """U, upper triangular [d, d], with H⁻¹ = Uᵀ U for the damped H."""
    H = H + torch.diag(dead.to(H.dtype))  # a dead channel gets a 1, as in llm-compressor: it is tied to no other
    H = H + dampening_frac * H.diagonal().mean() * torch.eye(H.shape[0], dtype=H.dtype, device=H.device)
    L, failed = torch.linalg.cholesky_ex(H)  # H = L Lᵀ
    if int(failed) == 0:
        U, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(L), upper=True)
    if int(failed) != 0 or not bool(U.isfinite().all()):
        raise DataError(
            f"The Hessian [{H.shape[0]}, {H.shape[0]}] can't be inverted with dampening_frac={dampening_frac}.",
            "Without its inverse there is no GPTQ, and rounding to nearest in its place would pass for GPTQ.",
            "Raise dampening_frac (0.1 cures most), use more or more varied calibration rows, "
            "and look for NaN or infinity in the activations.",
        )
    return U


def output_error(W: Tensor, W_hat: Tensor, x: Tensor) -> float:
    """||W X - Ŵ X|| / ||W X||, Frobenius, in float64: the error that GPTQ makes small.

    W, W_hat: [rows, d]; x: [..., d] inputs of the layer, best others than those that made H.
    """
    X = x.reshape(-1, x.shape[-1]).double().T  # [d, N], as in the paper
    Y = W.double() @ X  # [rows, d] @ [d, N] -> [rows, N]
    error = (W.double() - W_hat.double()) @ X
    return float(torch.linalg.vector_norm(error) / torch.linalg.vector_norm(Y))
