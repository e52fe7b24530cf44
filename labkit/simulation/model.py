"""A model whose linear layers follow a scheme, put on and taken off again.

    with simulating(model) as simulation:
        for scheme in paper_grid():
            simulation.apply(scheme, method="gptq", rows=rows)
            ...                                          # score `model`: it computes as the scheme would have it

The original weights are kept beside the model, on the CPU. Rounding takes one layer at a time, and so does LoRC: beyond
both weights, only what a single layer needs is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from labkit.errors import DataError, UsageError
from labkit.numerics import (
    DAMPENING,
    LowRank,
    dequantize,
    fitting_group,
    for_each_column,
    gptq,
    group_scales,
    low_rank_correction,
    m1,
    m2,
    quantize,
    relative_error,
)
from labkit.simulation.blocks import block_hessians, blocks_of
from labkit.simulation.linear import SimulatedLinear
from labkit.simulation.scheme import BLOCK_ROWS, METHODS, Applied, Method, Scheme, Weights

PLAIN_BYTES = 2  # a weight of W16, whatever the model computes in here
SCALE_BYTES = 2  # a real scale is kept in BF16
EXPONENT_BYTES = 1  # a power of two needs its exponent only
PLAIN = Applied(Scheme(), "rtn", 0, 0.0, ())  # the model as it came


class Simulation:
    """What `simulating` gives. linears: every linear layer in the model's blocks, by name; the rest stays as it is."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._plain = _linears(model)
        self.linears = {name: SimulatedLinear(linear) for name, linear in self._plain.items()}
        for name, linear in self.linears.items():
            model.set_submodule(name, linear)
        self.original = {name: linear.weight.detach().cpu().clone() for name, linear in self.linears.items()}
        self.applied = PLAIN
        self._rounded: Any = None  # what the weights are now: (weights, method, rows, dampening), None for W itself
        self._corrections: dict[str, LowRank] = {}

    def apply(
        self,
        scheme: Scheme,
        *,
        method: Method = "rtn",
        rows: Sequence[Sequence[int]] = (),
        dampening_frac: float = DAMPENING,
    ) -> None:
        """Lets the model compute by a scheme from now on. Weights are rounded again only if they are to be others.

        method: how weights are rounded; gptq wants `rows`, token ids to calibrate on, and takes `dampening_frac`
        (`numerics.gptq`). Errors: UsageError for an unknown method, GPTQ without rows or a rank that a layer has not;
        DataError naming the layer that can't be rounded.
        """
        if method not in METHODS:
            raise UsageError(f"method is {method!r}", fix=f"use one of {', '.join(METHODS)}")
        if scheme.activations and scheme.activations.dtype is None:
            raise UsageError(
                f"activations in {scheme.activations.name}",
                why="torch keeps no such type, and the simulated layer casts to it",
                fix="use INT8 or E4M3",
            )
        if scheme.weights and method == "gptq" and not rows:
            raise UsageError("GPTQ got no rows", why="it rounds for the inputs that it sees", fix="give rows=...")
        smallest = min(self.original, key=lambda name: min(self.original[name].shape))
        if scheme.rank > (most := min(self.original[smallest].shape)):
            raise UsageError(
                f"rank is {scheme.rank}, and {smallest} has {most} at most",
                why="a matrix has no rank above its smaller side",
                fix=f"use 0 to {most}",
            )
        calibrated_on = (tuple(map(tuple, rows)), dampening_frac) if method == "gptq" else ()
        asked = (scheme.weights, method, calibrated_on) if scheme.weights else None
        if self._rounded != asked:
            self._round(scheme.weights, method, rows, dampening_frac)
            self._rounded = asked
        for linear in self.linears.values():
            linear.activations, linear.correction = scheme.activations, None
        if scheme.rank:
            self._correct(scheme.rank)
        seen = len(rows) if method == "gptq" else 0
        self.applied = Applied(scheme, method, seen, dampening_frac, self.group_sizes(scheme.weights))

    def group_sizes(self, weights: Weights | None) -> tuple[int, ...]:
        """How many columns share a scale, each size that one of the layers has, the largest first."""
        columns = {original.shape[1] for original in self.original.values()} if weights else ()
        return tuple(sorted({_group(n, weights) for n in columns if weights}, reverse=True))

    def weight_bytes(self, scheme: Scheme) -> int:
        """What the layers take under a scheme: packed weights, scales, LoRC's factors. Biases are left out."""
        return sum(self._layer_bytes(original, scheme) for original in self.original.values())

    def bits_per_weight(self, scheme: Scheme) -> float:
        """`weight_bytes` in bits, over the number of weights in the layers."""
        return 8 * self.weight_bytes(scheme) / sum(original.numel() for original in self.original.values())

    @torch.no_grad()
    def errors(self) -> dict[str, float]:
        """||W - Ŵ - Û V̂|| / ||W|| of each layer as it stands."""
        found = {}
        for name, linear in self.linears.items():
            W_hat = linear.weight.float()
            if linear.correction:
                W_hat = W_hat + linear.correction.product().float()
            found[name] = relative_error(self.original[name].to(W_hat.device), W_hat)
        return found

    def undo(self) -> None:
        """Gives the model its linear layers and their weights back."""
        self._restore()
        for name, linear in self._plain.items():
            self.model.set_submodule(name, linear)
        self.original.clear()  # as large as the model, and of no use any more

    # --- rounding ---------------------------------------------------------------------------------------------------

    def _restore(self) -> None:
        for name, linear in self.linears.items():
            linear.weight.data.copy_(self.original[name])
            linear.activations = linear.correction = None
        self._corrections.clear()
        self._rounded = None
        self.applied = PLAIN

    def _round(
        self, weights: Weights | None, method: Method, rows: Sequence[Sequence[int]], dampening_frac: float
    ) -> None:
        """Rounds all layers, or none: an error on the way leaves the weights as they were at first."""
        self._restore()
        try:
            if weights and method == "rtn":
                for name in self.linears:
                    self._round_layer(name, weights)
            elif weights:
                for hessians in block_hessians(self.model, self.linears, rows):
                    for name, H in hessians.items():
                        self._round_layer(name, weights, H, dampening_frac)
        except BaseException:
            self._restore()
            raise

    @torch.no_grad()
    def _round_layer(self, name: str, weights: Weights, H: Tensor | None = None, dampening_frac: float = 0.0) -> None:
        """Writes Ŵ into a layer: by GPTQ if there is a Hessian, else to nearest."""
        linear = self.linears[name]
        W = linear.weight.data  # [rows, columns]
        try:
            scale = column_scales(W, weights)  # [rows, columns]
            if H is None:
                codes = quantize(W, scale, weights.format)
            else:
                codes = gptq(W, H, scale, weights.format, dampening_frac=dampening_frac)
        except DataError as error:
            raise DataError(f"{name}: {error.what}", error.why, error.fix) from error
        W.copy_(dequantize(codes, scale))

    @torch.no_grad()
    def _correct(self, rank: int) -> None:
        """Gives each layer its Û and V̂; one layer's decomposition at a time is in memory."""
        for name, linear in self.linears.items():
            kept = self._corrections.get(name)
            if kept is None or kept.rank < rank:
                W = self.original[name].to(linear.weight.device)
                kept = low_rank_correction(W, linear.weight.data, rank).to(linear.weight.dtype)
                self._corrections[name] = kept
            linear.correction = kept.at(rank)

    def _layer_bytes(self, original: Tensor, scheme: Scheme) -> int:
        rows, columns = original.shape
        if scheme.weights is None:
            return original.numel() * PLAIN_BYTES
        packed = rows * columns * scheme.weights.format.bits // 8
        groups = rows * (columns // _group(columns, scheme.weights))
        if scheme.weights.constraint == "M1":
            scales = groups * EXPONENT_BYTES
        elif scheme.weights.constraint == "M2":
            real = groups // _block_rows(rows)
            scales = groups * EXPONENT_BYTES + real * SCALE_BYTES
        else:
            scales = groups * SCALE_BYTES
        return packed + scales + LowRank.bytes_at(rows, columns, scheme.rank)


@contextmanager
def simulating(model: Any) -> Iterator[Simulation]:
    """A Simulation of a causal language model of transformers; its layers and weights are its own again at the end."""
    simulation = Simulation(model)
    try:
        yield simulation
    finally:
        simulation.undo()


def column_scales(W: Tensor, weights: Weights) -> Tensor:
    """The scale of each weight, [rows, columns] in W's dtype, constrained as asked for."""
    rows, columns = W.shape
    scales = group_scales(W, weights.format, _group(columns, weights))  # [rows, groups]
    if weights.constraint == "M1":
        scales = m1(scales, weights.rounding, weights.reading_taken)
    elif weights.constraint == "M2":
        scales = m2(scales, _block_rows(rows), weights.rounding, weights.reading_taken)
    return for_each_column(scales, columns)


def _group(columns: int, weights: Weights) -> int:
    return fitting_group(columns, weights.group) if weights.group else columns


def _block_rows(rows: int) -> int:
    return fitting_group(rows, BLOCK_ROWS)


def _linears(model: Any) -> dict[str, nn.Linear]:
    """The linear layers of a model's blocks, by name.

    Raises UsageError if there is none, or if a block has other matrices (experts kept in one tensor, convolutions).
    """
    blocks = blocks_of(model)
    inside = {id(module) for module in blocks.modules()}
    found = {n: m for n, m in model.named_modules() if id(m) in inside and isinstance(m, nn.Linear)}
    covered = {id(linear.weight) for linear in found.values()}
    left_out = [name for name, p in blocks.named_parameters() if p.ndim > 1 and id(p) not in covered]
    if left_out or not found:
        raise UsageError(
            f"{type(model).__name__} has {len(found)} linear layers in its blocks, and matrices beside them: "
            f"{', '.join(left_out[:3]) or 'none'}",
            "What stays in 16 bits would pass for quantized.",
            "Use a model whose blocks are built of torch.nn.Linear: Llama, Qwen, Mistral, Gemma, OPT and the like.",
        )
    return found
