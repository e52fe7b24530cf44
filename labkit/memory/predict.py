"""Bytes of a checkpoint's weights under a scheme, predicted from a config alone: no weight is ever loaded.

The model is built on torch's meta device, where tensors have shapes and no storage, so that every architecture
is counted as it is (biases, tied embeddings, per-head norms). A scheme then changes the linear layers only:

    int8, fp8     out × in × 1 byte  +  one BF16 scale for each output channel (static: one each for weight and input)
    w4a16         out × in / 2 bytes +  one BF16 scale for each group of columns + 16 bytes that hold the shape

which is what llm-compressor 0.14 writes for weights in BF16. Embeddings, norms, biases and the lm_head stay BF16, and
that is why the ratio to BF16 is never exactly 2 or 4.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

from labkit.errors import UsageError
from labkit.memory.config import Config, read_config, text_config

Scheme = Literal["bf16", "fp8-dynamic", "fp8-static", "int8-w8a8", "w4a16"]

BF16_BYTES = 2
GROUP_SIZE = 128  # columns that share one scale in llm-compressor's W4A16
SHAPE_BYTES = 16  # `weight_shape`: two int64, beside each packed weight


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a checkpoint's tensors. `linear` are the weights of the linear layers, `other` norms and biases.

    A tied lm_head is the embedding itself and counts there, once.
    """

    embeddings: int
    lm_head: int
    linear: int
    scales: int
    other: int

    @property
    def total(self) -> int:
        return self.embeddings + self.lm_head + self.linear + self.scales + self.other


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the model: its module's name, the kind of that module, and its shape."""

    module: str
    kind: Literal["embedding", "lm_head", "linear", "other"]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def tensors(config: Config) -> tuple[_Tensor, ...]:
    """Every tensor of the language model's checkpoint, a tied one once; a picture or sound tower is not counted."""
    return _tensors(json.dumps(read_config(config), sort_keys=True, default=str))


@lru_cache(maxsize=32)
def _tensors(plain: str) -> tuple[_Tensor, ...]:
    import torch
    from transformers import AutoModelForCausalLM

    config = text_config(json.loads(plain))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    head = model.get_output_embeddings()
    found, seen = [], set()
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue  # tied: the embedding came first
            seen.add(id(parameter))
            kind: Literal["embedding", "lm_head", "linear", "other"] = "other"
            if key == "weight" and isinstance(module, torch.nn.Embedding):
                kind = "embedding"
            elif key == "weight" and isinstance(module, torch.nn.Linear):
                kind = "lm_head" if module is head else "linear"
            found.append(_Tensor(name, kind, tuple(parameter.shape)))
        stored = {key for key in module._buffers if key not in module._non_persistent_buffers_set}
        found += [
            _Tensor(name, "other", tuple(b.shape)) for key, b in module.named_buffers(recurse=False) if key in stored
        ]
    return tuple(found)


def weight_bytes(
    config: Config,
    scheme: Scheme,
    ignore: Sequence[str] = ("lm_head",),
    *,
    group_size: int = GROUP_SIZE,
    symmetric: bool = True,
) -> WeightBytes:
    """Bytes of a checkpoint under a scheme, its weights in BF16 before.

    ignore: layers that stay BF16, as in a recipe: a name, `re:` with a pattern, or `Linear`. A tied lm_head that is not
    ignored becomes a tensor of its own. group_size and symmetric count for `w4a16` only; an asymmetric one has zero
    points. Raises UsageError for an unknown scheme.
    """
    if scheme not in get_args(Scheme):
        raise UsageError(f"scheme is {scheme!r}", fix=f"use one of {', '.join(get_args(Scheme))}")
    found = list(tensors(config))
    sums = dict.fromkeys(("embedding", "lm_head", "linear", "scales", "other"), 0)
    tied = not any(tensor.kind == "lm_head" for tensor in found)
    if tied and scheme != "bf16" and not _matches("lm_head", ignore):
        embedding = next(tensor for tensor in found if tensor.kind == "embedding")
        found.append(_Tensor("lm_head", "lm_head", embedding.shape))
    for tensor in found:
        weight, scales = tensor.size * BF16_BYTES, 0
        if tensor.kind in ("linear", "lm_head") and scheme != "bf16" and not _matches(tensor.module, ignore):
            weight, scales = _quantized(tensor.shape, scheme, group_size, symmetric)
        sums[tensor.kind] += weight
        sums["scales"] += scales
    return WeightBytes(sums["embedding"], sums["lm_head"], sums["linear"], sums["scales"], sums["other"])


def gpus_needed(weight_bytes: float, usable_bytes: float) -> int:
    """The fewest GPUs that hold the weights between them, of `usable_bytes` each: 1, 2, 4, 8, ...

    A power of two, as machines have them. Tensor parallelism also asks that their number divides the attention heads.
    """
    count = 1
    while count * usable_bytes < weight_bytes:
        count *= 2
    return count


def _quantized(shape: tuple[int, ...], scheme: Scheme, group_size: int, symmetric: bool) -> tuple[int, int]:
    """Bytes of a linear layer's weight [rows, columns] and of what must be stored beside it to read it."""
    rows, columns = shape
    if scheme == "fp8-static":
        return rows * columns, 2 * BF16_BYTES  # per tensor: weight_scale and input_scale
    if scheme == "w4a16":
        groups = math.ceil(columns / group_size)
        zero_points = 0 if symmetric else math.ceil(rows / 8) * groups * 4  # eight 4-bit values in an int32
        return rows * math.ceil(columns / 8) * 4, rows * groups * BF16_BYTES + zero_points + SHAPE_BYTES
    return rows * columns, rows * BF16_BYTES  # per channel: weight_scale [rows, 1]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.match(p[3:], name) if p.startswith("re:") else p in (name, "Linear") for p in patterns)
