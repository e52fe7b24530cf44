"""What makes rounding hurt less: SmoothQuant, GPTQ, and LoRC's low-rank correction.

**SmoothQuant** moves the difficulty of activation outliers into the weights, where it does less harm. In a linear layer
Y = X Wᵀ a few input channels j of X carry values a hundred times larger than the others. A token has one INT8 scale,
set by its outlier channel, and nearly everything else in the token rounds to zero. The weights have no such channels. A
factor s_j for each input channel leaves the product as it was and evens the two sides out:

    Y = (X diag(s)⁻¹) · (diag(s) Wᵀ)        s_j = max|X_j|^α / max|W_j|^(1-α)

α is the dial. α = 0 evens out the weights alone and leaves the outliers where they are; α = 1 makes all activation
channels equally large and hands every outlier to the weights; at α = 0.5 both sides have the same maximum in each
channel. Recipes of published W8A8 checkpoints use 0.7 or 0.8.

It costs nothing at run time: X comes out of an RMSNorm that multiplies channel j by a weight g_j anyway, so 1/s_j is
folded into g_j. That is also its limit: only layers that read a norm can be smoothed (q, k, v and gate, up in a Llama),
and all layers that read the same norm must share one s.

Source: Xiao et al., "SmoothQuant", arXiv 2211.10438, section 4, equation 4. llm-compressor's SmoothQuantModifier uses
the same formula with max X_j - min X_j in place of max|X_j| and 2 max|W_j| in place of max|W_j|. Where channels are
symmetric around zero the two differ by one factor for all of them, 2^(2α-1), which the scales of the rounding take up.

**GPTQ** rounds the weights one column after another, and lets the columns not yet rounded make up for each error.
Round-to-nearest makes each weight's error as small as it can be. What counts is the layer's output, so GPTQ looks for
grid points Ŵ with a small ||W X - Ŵ X||² on calibration inputs X. That error is quadratic in W, with the same second
derivatives for each row: the Hessian H = 2 X Xᵀ, which says which input channels are large and which go together. When
weight w_q of a row is rounded, the best reply of the weights still free has a closed form (Optimal Brain Surgeon):

    δ = - (w_q - quant(w_q)) / [H⁻¹]_qq · (H⁻¹)_q,:

Three ideas make it fast enough for large layers. All rows go through the columns in the same order, so they share H⁻¹.
The rows of H⁻¹ that the process needs, after each column's removal, are the rows of one upper Cholesky factor U of H⁻¹
(H⁻¹ = Uᵀ U), so the inverse is never updated and nothing drifts. And the updates of far columns wait until a block of
columns is done, then are made by one matrix product.

At 8 bits with a scale for each row it gains a little over RTN; at 4 bits it gains much. Inputs that repeat themselves
make H singular. Damping adds a share of H's mean diagonal to its diagonal: more of it is more stable, and the result is
closer to RTN. Where H can't be inverted, llm-compressor falls back to RTN and says so only in its log; here it is an
error.

Source: Frantar et al., "GPTQ", arXiv 2210.17323, algorithm 1. llm-compressor's `actorder="static"` takes the columns in
the order of H's falling diagonal; here, as with `actorder=None`, they are taken from left to right. docs/ldlq.md finds
the same grid points without an inverse of H.

**LoRC** gives back a part of what rounding took from a weight, as two thin matrices:

    E = W - Ŵ            what rounding took
    E = U Σ Vᵀ           its singular value decomposition, the largest singular values first
    Û = U_m √Σ_m         [rows, m]
    V̂ = √Σ_m V_mᵀ        [m, columns]
    W ≈ Ŵ + Û V̂

Of all matrices of rank m, Û V̂ is nearest to E (Eckart and Young). Rounding errors are close to random, and a few
directions hold little of a random matrix: the first 8 singular values of 4,096 hold 0.8% of its square. What gains more
is an error with structure: rows that clip, columns that are larger than others.

Sources: Yao et al., "ZeroQuant-V2", arXiv 2303.08302; with FP4 weights Wu et al., "ZeroQuant-FP", arXiv 2307.09782.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import cholesky_ex, vector_norm

from labkit.errors import DataError, UsageError
from labkit.numerics.formats import Format, dequantize, quantize

MINIMUM_SCALE = 1e-5  # of s_j, as in llm-compressor: a channel that was zero throughout would have 0, and g_j / 0
DAMPENING = 0.01  # the GPTQ paper's
BLOCK = 128  # columns for each of GPTQ's lazy updates, a matter of speed only
BYTES_PER_NUMBER = 2  # LoRC's factors are kept in BF16


# --- SmoothQuant ------------------------------------------------------------------------------------------------------


def channel_absmax(*tensors: Tensor) -> Tensor:
    """max|·| of each input channel over all rows of all tensors, [d].

    tensors: activations [..., d], or the weights [rows, d] of all layers that read one norm.
    """
    each = [tensor.abs().reshape(-1, tensor.shape[-1]).amax(dim=0) for tensor in tensors]  # one [d] for each tensor
    return torch.stack(each).amax(dim=0)  # [tensors, d] -> [d]


def smoothing_scales(x_absmax: Tensor, weight_absmax: Tensor, alpha: float) -> Tensor:
    """s_j = max|X_j|^α / max|W_j|^(1-α), at least MINIMUM_SCALE; X / s and W · s are the smoothed layer's.

    x_absmax, weight_absmax: [d], from calibration activations and from all weights that read them; alpha: 0 to 1.
    Returns [d]. A channel whose weights are all zero gets s_j = max|X_j|: nothing reads it, so nothing limits s_j.
    Errors: UsageError for an alpha outside 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise UsageError(
            f"alpha is {alpha}, but must lie between 0 and 1.",
            "It says which share of an outlier moves into the weights.",
            "Use 0.5 to start with, 0.7 to 0.8 for strong outliers.",
        )
    scales = x_absmax.pow(alpha) / weight_absmax.pow(1 - alpha)  # [d]
    return torch.where(weight_absmax > 0, scales, x_absmax).clamp(min=MINIMUM_SCALE)


# --- GPTQ -------------------------------------------------------------------------------------------------------------


def hessian(x: Tensor) -> Tensor:
    """H = 2/N · X Xᵀ of a layer's inputs, float32 [d, d]; the factor 2/N changes no result.

    x: [..., d], inputs of the layer over all calibration tokens. The paper's X is its transpose, [d, N].
    """
    tokens = x.reshape(-1, x.shape[-1]).float()  # [N, d]
    return 2 / tokens.shape[0] * tokens.T @ tokens  # [d, N] @ [N, d] -> [d, d]


def gptq(W: Tensor, H: Tensor, scale: Tensor, fmt: Format, *, dampening_frac: float = DAMPENING) -> Tensor:
    """The grid points of W chosen by GPTQ, columns from left to right; `dequantize(Q, scale)` gives Ŵ.

    W: [rows, d]; H: [d, d] from `hessian`; scale: for this W, [rows, 1] or [1] from `scale_for`, or [rows, d] from
    `for_each_column` (it stays fixed); dampening_frac: share of H's mean diagonal added to the diagonal.
    Returns Q [rows, d] in the format's dtype (int8, float8; float32 where torch has none).
    Errors: UsageError for shapes that don't fit, DataError if H can't be inverted.
    """
    d = W.shape[-1]
    if H.shape != (d, d) or scale.shape[-1] not in (1, d):
        raise UsageError(
            f"W is {list(W.shape)}, H is {list(H.shape)} and the scale is {list(scale.shape)}.",
            "H has a row and a column for each column of W, and the scale one entry for each row or each column.",
            "Calculate H from the inputs of this very layer; spread the scales of groups with `for_each_column`.",
        )
    scale = scale.expand(*scale.shape[:-1], d)  # a view: no memory
    dead = H.diagonal() == 0  # [d]: input channels that were zero on all calibration data
    W = W.float().masked_fill(dead, 0.0)  # [rows, d], a working copy; nothing says how a dead column should be rounded
    U = _inverse_cholesky(H.float(), dead, dampening_frac)  # [d, d], upper
    Q = torch.empty_like(W, dtype=fmt.dtype or W.dtype)  # [rows, d]
    for start in range(0, d, BLOCK):
        stop = min(start + BLOCK, d)
        E = torch.empty_like(W[:, start:stop])  # [rows, block]
        for j in range(start, stop):
            w, s = W[:, j : j + 1], scale[..., j : j + 1]  # [rows, 1]; [rows, 1] or [1]
            q = quantize(w, s, fmt)  # [rows, 1]
            e = (w - dequantize(q, s)) / U[j, j]  # [rows, 1]: the error in units of what it costs
            W[:, j:stop] -= e * U[j, j:stop]  # [rows, 1] · [stop - j]: the later columns of the block reply at once
            Q[:, j : j + 1], E[:, j - start : j - start + 1] = q, e
        W[:, stop:] -= E @ U[start:stop, stop:]  # [rows, block] @ [block, rest]: the lazy update of all later columns
    return Q


def _inverse_cholesky(H: Tensor, dead: Tensor, dampening_frac: float) -> Tensor:
    """U, upper triangular [d, d], with H⁻¹ = Uᵀ U for the damped H."""
    H = H + torch.diag(dead.to(H.dtype))  # a dead channel gets a 1, as in llm-compressor: it is tied to no other
    H = H + dampening_frac * H.diagonal().mean() * torch.eye(H.shape[0], dtype=H.dtype, device=H.device)
    L, failed = cholesky_ex(H)  # H = L Lᵀ
    if int(failed) == 0:
        U, failed = cholesky_ex(torch.cholesky_inverse(L), upper=True)
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
    error, Y = (W.double() - W_hat.double()) @ X, W.double() @ X  # [rows, d] @ [d, N] -> [rows, N]
    return float(vector_norm(error) / vector_norm(Y))


# --- LoRC -------------------------------------------------------------------------------------------------------------


class LowRank(NamedTuple):
    """Û [rows, m] and V̂ [m, columns]; float32 as they are calculated."""

    U: Tensor
    V: Tensor

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

    def at(self, rank: int) -> LowRank:
        """The same at a smaller rank: the first columns of Û and rows of V̂."""
        return LowRank(self.U[:, :rank], self.V[:rank])


def low_rank_correction(W: Tensor, W_hat: Tensor, rank: int = 8) -> LowRank:
    """Û and V̂ of E = W - Ŵ, calculated in float32.

    The eigenvectors of the smaller side's Gram matrix E Eᵀ are U, and Σ_m V_mᵀ = U_mᵀ E: a third of the time and memory
    of a full decomposition. U_m U_mᵀ E is a projection of E, so an inexact eigenvalue never makes the error grow.

    W, W_hat: [rows, columns]. Errors: UsageError for a rank above the smaller side, DataError for NaN or infinity.
    """
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
    tall = E.shape[0] > E.shape[1]
    E = E.T if tall else E
    U = torch.linalg.eigh(E @ E.T).eigenvectors[:, -rank:].flip(-1)  # [shorter side, m], the largest first
    scaled = U.T @ E  # [m, longer side] = Σ_m V_mᵀ
    root = vector_norm(scaled, dim=1).sqrt()  # [m] = √Σ_m
    U, V = U * root, scaled / root.where(root > 0, 1.0)[:, None]
    return LowRank(V.T, U.T) if tall else LowRank(U, V)
