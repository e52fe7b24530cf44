"""GPTQ's sums and its rounding, with the arguments and results of llm-compressor's own functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    _Scales = tuple[Tensor, Tensor, Tensor | None]  # scale, zero point, global scale


class Hessians:
    """Remembers X Xᵀ of the last input, for the next layer that reads it too."""

    def __init__(self, theirs: Any) -> None:
        self._theirs = theirs
        self._last: tuple[Tensor, Tensor] | None = None  # an input and its product

    def accumulate(self, inp: Tensor, module: Any, hessian: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """As llmcompressor's function of that name: adds 2 X Xᵀ of an input [..., d] to `hessian` [d, d]."""
        import torch

        if hessian.device.type != "cpu" or inp.ndim != 3 or not isinstance(module, torch.nn.Linear):
            found: tuple[Tensor, Tensor] = self._theirs(inp, module, hessian, num_samples)
            return found
        if self._last is None or self._last[0] is not inp:
            self._last = None  # before the next one is made: two of a wide layer are much memory
            x = math.sqrt(2) * inp.reshape(-1, inp.shape[-1]).t().to(torch.float32)  # [d, tokens]
            self._last = inp, x.matmul(x.t())
        hessian += self._last[1]
        num_samples += inp.shape[0]
        return hessian, num_samples

    def forget(self) -> None:
        """Gives the last product's memory back: as much as a Hessian of the widest layer, which is a block's last."""
        self._last = None


def by_ldlq(theirs: Any, forget: Callable[[], None]) -> Any:
    """A `quantize_weight` with llm-compressor's arguments and results that works by LDLQ on a CPU.

    forget: called first; no more inputs come to a block once its weights are quantized.
    """
    import torch
    from llmcompressor.modifiers.gptq.helpers import apply_activation_ordering

    from labkit.numerics.ldlq import ldlq

    def quantize_weight(
        weights: Tensor,
        hessians: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        global_scale: Tensor | None,
        quant_args: Any,
        blocksize: int = 128,
        percdamp: float = 0.01,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """weights: [batch, rows, d]; hessians: [batch, d, d]. Returns weights, losses [batch], fallbacks [batch]."""
        forget()
        if weights.device.type != "cpu":
            found: tuple[Tensor, Tensor, Tensor] = theirs(
                weights, hessians, scale, zero_point, global_scale, quant_args, blocksize, percdamp
            )
            return found
        W, H, order = apply_activation_ordering(weights.float(), hessians.float(), quant_args.actorder)
        losses, fell_back = torch.zeros(len(W)), torch.zeros(len(W), dtype=torch.bool)
        for i in range(len(W)):
            R = _damped_factor(W[i], H[i], percdamp)
            if R is None:  # as llm-compressor does, and labkit reports: no feedback, that is, round to nearest
                R, fell_back[i] = torch.eye(W.shape[-1]), True
            one = slice(i, i + 1)
            overall = None if global_scale is None else global_scale[one]
            sorted_by = None if order is None else order[one]
            columns = _Columns(quant_args, W[i].shape, (scale[one], zero_point[one], overall), sorted_by, blocksize)
            W[i], lost = ldlq(W[i], R, columns, blocksize)
            losses[i] = lost.sum() / 2
        if order is not None:
            W = torch.gather(W, -1, torch.argsort(order, dim=-1).unsqueeze(-2).expand_as(W))
        return W.to(weights.dtype), losses, fell_back

    return quantize_weight


def _damped_factor(W: Tensor, H: Tensor, percdamp: float) -> Tensor | None:
    """R of the damped H [d, d], whose memory it takes. Columns that no input reached become zero in W [rows, d]."""
    from labkit.numerics.ldlq import upper_factor

    diagonal = H.diagonal()
    dead = diagonal == 0
    W[:, dead] = 0
    diagonal[dead] = 1
    diagonal += percdamp * diagonal.mean()
    return upper_factor(H, in_place=True)


class _Columns:
    """Rounds column k of a weight to its grid, with compressed-tensors' own arithmetic and the scales of k's group."""

    def __init__(self, args: Any, shape: Any, scales: _Scales, order: Tensor | None, width: int) -> None:
        """shape: [rows, d]; scales: scale, zero point and global scale or None, each with a leading 1; order: [1, d],
        how columns were sorted, or None; width: columns whose scales are spread out at a time.
        """
        import torch
        from compressed_tensors.quantization import ActivationOrdering, QuantizationStrategy

        self._args, (self._rows, self._d), self._scales, self._width = args, shape, scales, width
        self._by_channel = args.model_copy(update={"strategy": QuantizationStrategy.CHANNEL})
        self._groups: Tensor | None = None
        if args.strategy in (QuantizationStrategy.GROUP, QuantizationStrategy.TENSOR_GROUP):
            self._groups = torch.arange(self._d, dtype=torch.int) // args.group_size  # [d]
        elif args.strategy == QuantizationStrategy.BLOCK:
            self._groups = torch.arange(self._d, dtype=torch.int) // args.block_structure[1]
        if self._groups is not None and args.actorder == ActivationOrdering.WEIGHT:
            self._groups = self._groups[order]  # [1, d]
        self._begin = -1
        self._window: tuple[Tensor, Tensor | None] = scales[0], scales[1]

    def __call__(self, w: Tensor, k: int) -> Tensor:
        """w: [rows], column k before rounding; returns its grid points, [rows]."""
        from compressed_tensors.quantization import fake_quantize
        from llmcompressor.modifiers.gptq.helpers import column_scale_window

        begin = k - k % self._width
        if begin != self._begin:  # the scales of the next columns: [1, rows, width] each
            end = min(begin + self._width, self._d)
            self._window = column_scale_window(*self._scales, self._groups, self._args, self._rows, begin, end)
            self._begin = begin
        scale, zero = (None if each is None else each[0, :, k - begin, None] for each in self._window)
        rounded: Tensor = fake_quantize(w[:, None], scale, zero, self._by_channel)[:, 0]
        return rounded
