"""Simulated quantization: a causal language model of transformers that computes as if it were of another format.

    with simulating(model) as simulation:
        for scheme in paper_grid():
            simulation.apply(scheme, method="gptq", rows=rows)
            ...                                          # score `model`: it computes as the scheme would have it

Most hardware has no kernel for FP4 weights with FP8 activations, and no checkpoint format says all that a paper tries.
So numbers are rounded where hardware would round them, and multiplied in the model's own dtype: weights once, when a
scheme is applied; activations at each call, with one scale for each token. What such a model answers is what the scheme
would answer. How fast it answers says nothing: it still multiplies 16-bit numbers, and rounds on top.

The original weights are kept beside the model, on the CPU; rounding and LoRC take one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from labkit import numerics
from labkit.behaviour import Batch, batches
from labkit.errors import DataError, UsageError
from labkit.numerics import E2M1, E4M3, INT4, INT8, ExponentRounding, Format, LowRank, Reading, fitting_group

Constraint = Literal["", "M1", "M2"]
Method = Literal["gptq", "rtn"]
Rows = Sequence[Sequence[int]]  # token ids

PAPER_GROUP = 256  # columns that share a scale
PAPER_RANK = 8
BLOCK_ROWS = 64  # rows that share M2's real scale; the paper leaves the number open

BF16_BYTES = 2  # a weight of W16, whatever the model computes in here, and a real scale
EXPONENT_BYTES = 1  # a power of two needs its exponent only


# --- what a scheme rounds -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """How weights are rounded, without any correction: layers rounded so can be shared by several schemes.

    group: columns that share a scale, the largest divisor of a layer's columns up to it. constraint:
    M1 or M2 on the scales, with `rounding` and `reading` as in `numerics.m1`; without a reading each takes the one that
    makes no scale smaller, so that nothing clips: M1 of S, M2 of 1/S.
    """

    format: Format
    group: int = PAPER_GROUP
    constraint: Constraint = ""
    rounding: ExponentRounding = "ceil"
    reading: Reading | None = None

    @property
    def reading_taken(self) -> Reading:
        return self.reading or ("1/S" if self.constraint == "M2" else "S")

    def scales(self, W: Tensor) -> Tensor:
        """The scale of each weight of W [rows, columns], constrained as asked for; same shape and dtype."""
        rows, columns = W.shape
        scales = numerics.group_scales(W, self.format, fitting_group(columns, self.group))  # [rows, groups]
        if self.constraint == "M1":
            scales = numerics.m1(scales, self.rounding, self.reading_taken)
        elif self.constraint == "M2":
            scales = numerics.m2(scales, fitting_group(rows, BLOCK_ROWS), self.rounding, self.reading_taken)
        return numerics.for_each_column(scales, columns)


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
        both = (self.weights.format if self.weights else None, self.activations)
        families = ["FP" if fmt.exponent_bits else "INT" for fmt in both if fmt]
        more = [self.weights.constraint if self.weights else "", "LoRC" if self.rank else ""]
        return " ".join(filter(None, ["–".join(families), *more])) or "–"

    @property
    def variant(self) -> str:
        """The name in the ledger: w4a8-fp-fp-m1-lorc."""
        if self == Scheme():
            return "bf16"
        return "-".join([self.bits, *self.formats.replace("–", " ").split()]).lower()

    def bytes_of(self, rows: int, columns: int) -> int:
        """What a weight [rows, columns] takes: packed codes, scales, LoRC's factors."""
        if self.weights is None:
            return BF16_BYTES * rows * columns
        groups = rows * (columns // fitting_group(columns, self.weights.group))
        scales = {
            "": BF16_BYTES * groups,
            "M1": EXPONENT_BYTES * groups,
            "M2": EXPONENT_BYTES * groups + BF16_BYTES * (groups // fitting_group(rows, BLOCK_ROWS)),
        }[self.weights.constraint]
        codes = rows * columns * self.weights.format.bits // 8
        return codes + scales + LowRank.bytes_at(rows, columns, self.rank)


def paper_grid(group: int = PAPER_GROUP) -> tuple[Scheme, ...]:
    """The 14 rows of ZeroQuant-FP's tables, in their order; rows that share their rounded weights stand together."""
    int8, fp8, int4, fp4 = (Weights(fmt, group) for fmt in (INT8, E4M3, INT4, E2M1))
    eight_bits = (Scheme(), Scheme(int8, INT8), Scheme(int8, E4M3), Scheme(fp8, E4M3))
    four_bits = [Scheme(int4, INT8), Scheme(int4, E4M3)]
    constraints: tuple[Constraint, ...] = ("", "M1", "M2")
    four_bits += [Scheme(replace(fp4, constraint=constraint), E4M3) for constraint in constraints]
    return (*eight_bits, *(row for scheme in four_bits for row in (scheme, replace(scheme, rank=PAPER_RANK))))


@dataclass(frozen=True)
class Applied:
    """What a model computes by. groups: columns that share a scale, of each size that a layer has, largest first."""

    scheme: Scheme = Scheme()
    method: Method = "rtn"
    rows: int = 0
    dampening_frac: float = 0.0
    groups: tuple[int, ...] = ()

    def settings(self) -> dict[str, Any]:
        """What a variant's name does not say, for the ledger."""
        found: dict[str, Any] = {"method": self.method, "rank": self.scheme.rank, "groups": list(self.groups)}
        if self.method == "gptq":
            found |= {"calibration_rows": self.rows, "dampening_frac": self.dampening_frac}
        if (weights := self.scheme.weights) and weights.constraint:
            found |= {"rounding": weights.rounding, "reading": weights.reading_taken}
        return found


# --- a scheme on a model --------------------------------------------------------------------------------------------


@contextmanager
def simulating(model: Any) -> Iterator[Simulation]:
    """A Simulation of a causal language model of transformers; its layers and weights are its own again at the end."""
    simulation = Simulation(model)
    try:
        yield simulation
    finally:
        simulation.undo()


class Simulation:
    """What `simulating` gives. Each linear layer computes y = round(x) · (Ŵ + Û V̂)ᵀ + b, by hooks on the layer.

    linears: every linear layer in the model's blocks, by name; the rest stays as it is. original: their own weights, on
    the CPU. corrections: Û and V̂ of each, kept as two thin matrices. applied: what the model computes by now.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.linears = _linears(model)
        self.original = {name: linear.weight.detach().to("cpu", copy=True) for name, linear in self.linears.items()}
        self.corrections: dict[str, LowRank] = {}
        self.applied = Applied()
        self._rounded: Any = None  # what the weights are now: (weights, method, rows, dampening), None for W itself
        self._hooks = [linear.register_forward_pre_hook(self._round_input) for linear in self.linears.values()]
        for name, linear in self.linears.items():
            self._hooks.append(linear.register_forward_hook(partial(self._correct, name)))

    def _round_input(self, _linear: nn.Module, args: tuple[Tensor, ...]) -> Tensor | None:
        """x, [..., columns], with each token rounded; None leaves it."""
        activations = self.applied.scheme.activations
        return numerics.round_to_nearest(args[0], activations, "per-token") if activations else None

    def _correct(self, name: str, _linear: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor | None:
        """y, [..., rows], with what the correction adds; None leaves it."""
        if name not in self.corrections:
            return None
        U, V = self.corrections[name]
        return y + nn.functional.linear(nn.functional.linear(args[0], V), U)  # [..., m] between the two

    def apply(
        self, scheme: Scheme, *, method: Method = "rtn", rows: Rows = (), dampening_frac: float = numerics.DAMPENING
    ) -> None:
        """Lets the model compute by a scheme from now on. Weights are rounded again only if they are to be others.

        method: how weights are rounded; gptq wants `rows`, token ids to calibrate on, and takes `dampening_frac`
        (`numerics.gptq`). Errors: UsageError for an unknown method, GPTQ without rows or a rank that a layer has not;
        DataError naming the layer that can't be rounded.
        """
        if method not in get_args(Method):
            raise UsageError(f"method is {method!r}", fix=f"use one of {', '.join(get_args(Method))}")
        if scheme.weights and method == "gptq" and not rows:
            raise UsageError("GPTQ got no rows", why="it rounds for the inputs that it sees", fix="give rows=...")
        most, smallest = min((min(W.shape), name) for name, W in self.original.items())
        if scheme.rank > most:
            raise UsageError(f"rank is {scheme.rank}, and {smallest} has {most} at most", fix=f"use 0 to {most}")
        calibrated_on = (tuple(map(tuple, rows)), dampening_frac) if method == "gptq" else ()
        asked = (scheme.weights, method, calibrated_on) if scheme.weights else None
        if self._rounded != asked:
            self._round(scheme.weights, rows if method == "gptq" else (), dampening_frac)
            self._rounded = asked
        self.corrections.clear()
        for name, linear in self.linears.items() if scheme.rank else ():
            W = self.original[name].to(linear.weight.device)
            found = numerics.low_rank_correction(W, linear.weight.data, scheme.rank)
            self.corrections[name] = LowRank(*(factor.to(W.dtype) for factor in found))
        groups = set()
        if scheme.weights:
            groups = {fitting_group(W.shape[1], scheme.weights.group) for W in self.original.values()}
        self.applied = Applied(scheme, method, len(rows), dampening_frac, tuple(sorted(groups, reverse=True)))

    def bits_per_weight(self, scheme: Scheme) -> float:
        """What the layers take under a scheme, in bits over their number of weights; biases are left out."""
        total = sum(scheme.bytes_of(*original.shape) for original in self.original.values())
        return 8 * total / sum(original.numel() for original in self.original.values())

    @torch.no_grad()
    def errors(self) -> dict[str, float]:
        """||W - Ŵ - Û V̂|| / ||W|| of each layer as it stands."""
        found = {}
        for name, linear in self.linears.items():
            W_hat = linear.weight.float()
            if name in self.corrections:
                W_hat = W_hat + self.corrections[name].product().float()
            found[name] = numerics.relative_error(self.original[name].to(W_hat.device), W_hat)
        return found

    def undo(self) -> None:
        """Takes the hooks off and gives the linear layers their weights back."""
        self._restore()
        for hook in self._hooks:
            hook.remove()
        self.original.clear()  # as large as the model, and of no use any more

    def _restore(self) -> None:
        for name, linear in self.linears.items():
            linear.weight.data.copy_(self.original[name])
        self.corrections.clear()
        self._rounded, self.applied = None, Applied()

    def _round(self, weights: Weights | None, rows: Rows, dampening_frac: float) -> None:
        """Rounds all layers, or none if there is an error on the way: by GPTQ calibrated on rows, else to nearest."""
        self._restore()
        if weights is None:
            return
        walk: Iterable[Mapping[str, Tensor | None]] = [dict.fromkeys(self.linears)]
        if rows:
            walk = block_hessians(self.model, self.linears, rows)
        try:
            for hessians in walk:
                for name, H in hessians.items():
                    self._round_layer(name, weights, H, dampening_frac)
        except BaseException:
            self._restore()
            raise

    @torch.no_grad()
    def _round_layer(self, name: str, weights: Weights, H: Tensor | None, dampening_frac: float) -> None:
        """Writes Ŵ into a layer: by GPTQ if there is a Hessian, else to nearest."""
        W = self.linears[name].weight.data  # [rows, columns]
        try:
            scale = weights.scales(W)  # [rows, columns]
            if H is None:
                codes = numerics.quantize(W, scale, weights.format)
            else:
                codes = numerics.gptq(W, H, scale, weights.format, dampening_frac=dampening_frac)
        except DataError as error:
            raise DataError(f"{name}: {error.what}", error.why, error.fix) from error
        W.copy_(numerics.dequantize(codes, scale))


# --- a model block by block, as GPTQ walks it -----------------------------------------------------------------------


def _blocks(model: Any) -> nn.ModuleList:
    lists = [child for child in model.get_decoder().children() if isinstance(child, nn.ModuleList)]
    return max(lists, key=len, default=nn.ModuleList())


def _linears(model: Any) -> dict[str, nn.Linear]:
    """The linear layers of a model's blocks, by name.

    Raises UsageError if there is none, or if a block has other matrices (experts kept in one tensor, convolutions).
    """
    inside = set(_blocks(model).modules())
    found = {n: m for n, m in model.named_modules() if m in inside and isinstance(m, nn.Linear)}
    covered = {id(linear.weight) for linear in found.values()}
    left_out = [name for name, p in _blocks(model).named_parameters() if p.ndim > 1 and id(p) not in covered]
    if left_out or not found:
        raise UsageError(
            f"{type(model).__name__} has {len(found)} linear layers in its blocks, and matrices beside them: "
            f"{', '.join(left_out[:3]) or 'none'}",
            "What stays in 16 bits would pass for quantized.",
            "Use a model whose blocks are built of torch.nn.Linear: Llama, Qwen, Mistral, Gemma, OPT and the like.",
        )
    return found


_Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a block was called with, besides the hidden states


def block_hessians(model: Any, linears: Mapping[str, nn.Module], rows: Rows) -> Iterator[dict[str, Tensor]]:
    """For each block in turn H = 2/N · X Xᵀ of its layers by name, float32 [columns, columns], over all real tokens.

    A block is called here by itself, with the hidden states that the block before returned and everything else
    (positions, masks, rotary tables) as the model itself passed it in one recorded pass. So nothing is known of an
    architecture but where its blocks are, and the cost is three forwards of the model.

    linears: the layers of interest. What the caller does to a block's layers before it asks for the next block is what
    that one's inputs come from.
    """
    found, blocks = list(batches(rows, model.device)), _blocks(model)
    hidden, calls = _record(model, blocks, found)
    tokens = sum(int(batch.real.sum()) for batch in found)
    for block, each in zip(blocks, calls, strict=True):
        inside = set(block.modules())
        sums: dict[str, Tensor] = {}
        mine = {name: linear for name, linear in linears.items() if linear in inside}
        for batch, states, call in zip(found, hidden, each, strict=True):
            with ExitStack() as hooks:
                for name, linear in mine.items():
                    hooks.enter_context(linear.register_forward_pre_hook(partial(_add, sums, name, batch.real)))
                _run(block, states, call)
        if missing := sorted(mine.keys() - sums.keys()):
            raise DataError(f"no calibration token reached {missing[0]}", fix="use more rows, or round to nearest")
        yield {name: 2 / tokens * total for name, total in sums.items()}
        hidden = [_run(block, states, call) for states, call in zip(hidden, each, strict=True)]


def _add(sums: dict[str, Tensor], name: str, real: Tensor, _linear: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Adds X Xᵀ of one batch's real tokens to a layer's sum."""
    x = args[0].reshape(-1, args[0].shape[-1])[real.reshape(-1)].float()  # [tokens, columns]; OPT flattens rows
    sums[name] = sums.get(name, 0) + x.T @ x


@torch.no_grad()
def _record(model: Any, blocks: nn.ModuleList, found: Sequence[Batch]) -> tuple[list[Tensor], list[list[_Call]]]:
    """One pass of the whole model over each batch.

    Returns what the first block gets of each batch, [rows, tokens, width] on the CPU, and the calls: [block][batch].
    """
    hidden: list[Tensor] = []
    calls: list[list[_Call]] = [[] for _ in blocks]

    def note(number: int, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if number == 0:
            hidden.append((args[0] if args else kwargs["hidden_states"]).cpu())
        calls[number].append((args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}))

    with ExitStack() as hooks:
        for number, block in enumerate(blocks):
            hooks.enter_context(block.register_forward_pre_hook(partial(note, number), with_kwargs=True))
        for batch in found:
            model(input_ids=batch.ids, use_cache=False)
    return hidden, calls


@torch.no_grad()
def _run(block: nn.Module, hidden: Tensor, call: _Call) -> Tensor:
    """A block's output for one batch, on the CPU."""
    args, kwargs = call
    out = block(hidden.to(next(block.parameters()).device), *args, **kwargs)
    return (out[0] if isinstance(out, tuple) else out).cpu()
