"""Walks a model block by block with calibration rows, as GPTQ wants it: the Hessian of each layer, from the inputs that
it gets once all blocks before it are rounded.

A block is called here by itself, with the hidden states that the block before returned and everything else (positions,
masks, rotary tables) as the model itself passed it in one recorded pass. So nothing is known of an architecture but
where its blocks are, and the cost is three forwards of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from labkit.errors import DataError, UsageError
from labkit.padding import Batch, batches


def blocks_of(model: Any) -> nn.ModuleList:
    """A model's blocks: the longest list of modules in its decoder. Raises UsageError if it has none."""
    lists = [child for child in model.get_decoder().children() if isinstance(child, nn.ModuleList)]
    if not lists:
        raise UsageError(
            f"{type(model).__name__} keeps its blocks in no list of modules.",
            "GPTQ goes through a model block by block.",
            "Use a causal language model of transformers, or round to nearest.",
        )
    return max(lists, key=len)


@dataclass
class _Call:
    """What a block was called with for one batch, besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class _Recorded:
    """hidden: of each batch, what the first block gets, [rows, tokens, width], on the CPU. calls: [block][batch]."""

    hidden: list[Tensor] = field(default_factory=list)
    calls: list[list[_Call]] = field(default_factory=list)


def block_hessians(
    model: Any, linears: Mapping[str, nn.Module], rows: Sequence[Sequence[int]]
) -> Iterator[dict[str, Tensor]]:
    """For each block in turn the Hessians of its layers by name, float32 [columns, columns].

    linears: the layers of interest, by name. rows: token ids. What the caller does to a block's layers before it asks
    for the next block is what that one's inputs come from. Raises DataError naming a layer that no token reached.
    """
    found = list(batches(rows, model.device))
    blocks = blocks_of(model)
    recorded = _record(model, blocks, found)
    for block, calls in zip(blocks, recorded.calls, strict=True):
        inside = {id(module) for module in block.modules()}
        mine = {name: linear for name, linear in linears.items() if id(linear) in inside}
        yield _hessians(block, mine, recorded.hidden, calls, found)
        recorded.hidden = [_run(block, hidden, call) for hidden, call in zip(recorded.hidden, calls, strict=True)]


@torch.no_grad()
def _record(model: Any, blocks: nn.ModuleList, found: Sequence[Batch]) -> _Recorded:
    """One pass of the whole model over each batch, noting what each block is called with."""
    recorded = _Recorded(calls=[[] for _ in blocks])

    def note(number: int, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        recorded.calls[number].append(_Call(args[1:], others))
        if number == 0:
            recorded.hidden.append((args[0] if args else kwargs["hidden_states"]).cpu())

    with ExitStack() as stack:
        for number, block in enumerate(blocks):
            stack.callback(block.register_forward_pre_hook(partial(note, number), with_kwargs=True).remove)
        for batch in found:
            model(input_ids=batch.ids, use_cache=False)
    return recorded


@torch.no_grad()
def _run(block: nn.Module, hidden: Tensor, call: _Call) -> Tensor:
    """A block's output for one batch, on the CPU."""
    out = block(hidden.to(next(block.parameters()).device), *call.args, **call.kwargs)
    return (out[0] if isinstance(out, tuple) else out).cpu()


def _hessians(
    block: nn.Module,
    linears: Mapping[str, nn.Module],
    hidden: Sequence[Tensor],
    calls: Sequence[_Call],
    found: Sequence[Batch],
) -> dict[str, Tensor]:
    """H = 2/N · X Xᵀ of each layer of a block, summed batch by batch over its real tokens."""
    sums: dict[str, Tensor] = {}

    def add(name: str, real: Tensor, _linear: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].reshape(-1, args[0].shape[-1])[real.reshape(-1)].float()  # [tokens, columns]; OPT flattens rows
        sums[name] = sums.get(name, 0) + x.T @ x

    for batch, states, call in zip(found, hidden, calls, strict=True):
        with ExitStack() as stack:
            for name, linear in linears.items():
                stack.callback(linear.register_forward_pre_hook(partial(add, name, batch.real)).remove)
            _run(block, states, call)
    if missing := sorted(linears.keys() - sums.keys()):
        raise DataError(
            f"no calibration token reached {missing[0]}",
            why="without inputs GPTQ has nothing to round for",
            fix="use more varied rows, or round to nearest",
        )
    tokens = sum(int(batch.real.sum()) for batch in found)
    return {name: 2 / tokens * total for name, total in sums.items()}
