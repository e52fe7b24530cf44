"""Bytes of weights, KV cache and activations: predicted from a config, measured, and given back.

No weight is loaded for a prediction: the model is built on torch's meta device, where tensors have shapes and no
storage, so that every architecture counts as it is. A scheme then changes the linear layers only:

    int8, fp8     out × in × 1 byte  +  one BF16 scale for each output channel (static: one each for weight and input)
    w4a16         out × in / 2 bytes +  one BF16 scale for each group of columns + 16 bytes that hold the shape

which is what llm-compressor 0.14 writes for weights in BF16. Embeddings, norms, biases and the lm_head stay BF16, and
that is why the ratio to BF16 is never exactly 2 or 4.
"""

from __future__ import annotations

import ctypes
import gc
import json
import math
import re
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import psutil

from labkit.errors import DataError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# A config as a dict, as transformers' object, or as the path of a config.json or of a folder that holds one.
Config: TypeAlias = "Mapping[str, Any] | str | Path | PreTrainedConfig"
Scheme = Literal["bf16", "fp8-dynamic", "fp8-static", "int8-w8a8", "w4a16"]

BF16_BYTES = 2
W4A16_GROUP = 128  # columns that share a scale

# Qwen2.5-7B-Instruct, what counts of its config.json; the workbench's model, so that its arithmetic needs no hub.
QWEN_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
# And Qwen2.5-72B-Instruct, which no single GPU holds in BF16.
QWEN_72B: dict[str, Any] = QWEN_7B | {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 29568,
}
CONFIGS = {"Qwen2.5-7B": QWEN_7B, "Qwen2.5-72B": QWEN_72B}


def read_config(config: Config) -> dict[str, Any]:
    """A config as plain data. Raises DataError if its file is missing or is no config."""
    if isinstance(config, (str, Path)):
        path = Path(config) / "config.json" if Path(config).is_dir() else Path(config)
        try:
            config = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{path} can't be read as a config: {error}", fix="give a checkpoint's folder") from error
    plain = dict(config) if isinstance(config, Mapping) else config.to_dict()
    if "model_type" not in plain:
        raise DataError("the config has no model_type", "it names the architecture", "use a Hugging Face config")
    return {name: value for name, value in plain.items() if name not in ("quantization_config", "auto_map")}


def text_config(config: Config) -> PreTrainedConfig:
    """The language model's part of a config, with the architecture's defaults filled in."""
    from transformers import AutoConfig

    plain = read_config(config)
    try:
        return AutoConfig.for_model(**plain).get_text_config()
    except ValueError as error:
        what = f"transformers knows no architecture {plain['model_type']!r}"
        why = "code from a model's own folder is never run"
        raise DataError(what, why, "choose a model that transformers itself implements") from error


class WeightBytes(NamedTuple):
    """Bytes of a checkpoint's tensors, a tied lm_head as the embedding that it is; `other` are norms and biases."""

    embeddings: int
    lm_head: int
    linear: int
    scales: int
    other: int

    @property
    def total(self) -> int:
        return sum(self)


def tensors(config: Config) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """Every tensor of the language model's checkpoint, a tied one once: (module's name, shape, field of WeightBytes).

    A picture or sound tower is not counted.
    """
    return _tensors(json.dumps(read_config(config), sort_keys=True, default=str))


@lru_cache(maxsize=32)
def _tensors(plain: str) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(text_config(json.loads(plain)), dtype=torch.bfloat16)
    head, found, seen = model.get_output_embeddings(), [], set()
    for path, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue  # tied: the embedding came first
        seen.add(id(tensor))
        name, _, key = path.rpartition(".")
        module, kind = model.get_submodule(name), "other"
        if key == "weight" and isinstance(module, torch.nn.Embedding):
            kind = "embeddings"
        elif key == "weight" and isinstance(module, torch.nn.Linear):
            kind = "lm_head" if module is head else "linear"
        found.append((name, tuple(tensor.shape), kind))
    return tuple(found)


def weight_bytes(config: Config, scheme: Scheme, ignore: Sequence[str] = ("lm_head",)) -> WeightBytes:
    """Bytes of a checkpoint under a scheme, its weights in BF16 before. Raises UsageError for an unknown scheme.

    ignore: layers that stay BF16, as in a recipe: a name, `re:` with a pattern, or `Linear`. A tied lm_head that is not
    ignored becomes a tensor of its own.
    """
    if scheme not in get_args(Scheme):
        raise UsageError(f"scheme is {scheme!r}", fix=f"use one of {', '.join(get_args(Scheme))}")
    found = list(tensors(config))
    if scheme != "bf16" and all(kind != "lm_head" for *_, kind in found) and not _matches("lm_head", ignore):
        found.append(next(("lm_head", shape, "lm_head") for _, shape, kind in found if kind == "embeddings"))
    sums = dict.fromkeys(WeightBytes._fields, 0)
    for name, shape, kind in found:
        weight, scales = math.prod(shape) * BF16_BYTES, 0
        if scheme != "bf16" and kind in ("linear", "lm_head") and not _matches(name, ignore):
            weight, scales = _quantized(shape, scheme)
        sums[kind] += weight
        sums["scales"] += scales
    return WeightBytes(**sums)


def _quantized(shape: tuple[int, ...], scheme: Scheme) -> tuple[int, int]:
    """Bytes of a linear layer's weight [rows, columns] and of what must be stored beside it to read it."""
    rows, columns = shape
    if scheme == "fp8-static":
        return rows * columns, 2 * BF16_BYTES  # per tensor: weight_scale and input_scale
    if scheme == "w4a16":
        scales = rows * math.ceil(columns / W4A16_GROUP) * BF16_BYTES
        return rows * math.ceil(columns / 8) * 4, scales + 16  # eight to an int32; `weight_shape`: two int64
    return rows * columns, rows * BF16_BYTES  # per channel: weight_scale [rows, 1]


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.match(p[3:], name) if p.startswith("re:") else p in (name, "Linear") for p in patterns)


def gpus_needed(weight_bytes: float, usable_bytes: float) -> int:
    """The fewest GPUs that hold the weights between them, of `usable_bytes` each: 1, 2, 4, 8, ...

    A power of two, as machines have them. Tensor parallelism also asks that their number divides the attention heads.
    """
    count = 1
    while count * usable_bytes < weight_bytes:
        count *= 2
    return count


def _widths(found: PreTrainedConfig) -> tuple[int, int]:
    """What a token's queries take, and its keys (or values), in values: heads × head size."""
    heads = found.num_attention_heads
    head_size = getattr(found, "head_dim", None) or found.hidden_size // heads
    return heads * head_size, (getattr(found, "num_key_value_heads", None) or heads) * head_size


def kv_cache_bytes(config: Config, batch: int, sequence: int, bytes_per_value: int = BF16_BYTES) -> int:
    """2 (keys and values) × layers × KV heads × head size × batch × sequence × bytes per value; 1 byte for FP8.

    An upper bound for layers with a sliding window, which can drop what lies outside it.
    """
    found = text_config(config)
    return int(2 * found.num_hidden_layers * _widths(found)[1] * batch * sequence * bytes_per_value)


class ActivationBytes(NamedTuple):
    """What a forward holds in its three fullest moments, in bytes; one after another, so the largest is the peak."""

    attention: int
    mlp: int
    logits: int

    @property
    def peak(self) -> int:
        return max(self)


def activation_parts(config: Config, batch: int, sequence: int) -> ActivationBytes:
    """The moments of one BF16 forward of transformers, without gradients or cache: dense, gated MLP, SDPA.

    Per token, with hidden H, intermediate I, query width A, KV width K, vocabulary V:

        mlp        4H + 3I    embeddings, layer input, residual, normed input; activated gate, up, and their product
        attention  3H + max(4A + 2K, 2A + 5K)    rotating the queries, then the keys, makes copies of each
        logits     V + H      every position's logits (2V + H where they are scaled or capped afterwards)

    With q_norm, attention has 3H + 5A, as norms compute in FP32. A sliding window shorter than the sequence adds a mask
    of sequence × sequence.
    """
    found, tokens = text_config(config), batch * sequence
    hidden, (query, kv) = found.hidden_size, _widths(found)
    attention = 3 * hidden + max(4 * query + 2 * kv, 2 * query + 5 * kv)
    if any(name.endswith("q_norm") for name, *_ in tensors(config)):
        attention = max(attention, 3 * hidden + 5 * query)
    mask = sequence**2 if sequence > (getattr(found, "sliding_window", None) or sequence) else 0
    scaled = ("logits_scaling", "final_logit_softcapping", "logit_scale")  # Granite, Gemma 2, Cohere
    logits = (2 if any(getattr(found, name, None) is not None for name in scaled) else 1) * found.vocab_size + hidden
    return ActivationBytes(
        attention=tokens * attention * BF16_BYTES + mask * (2 + batch * BF16_BYTES),
        mlp=tokens * (4 * hidden + 3 * found.intermediate_size) * BF16_BYTES + 2 * mask,
        logits=tokens * logits * BF16_BYTES,
    )


def activation_bytes(config: Config, batch: int, sequence: int) -> int:
    """Peak bytes of activations in one BF16 forward of transformers: the largest of `activation_parts`.

    Under W8A8 an engine needs as much: activations stay BF16 between the linear layers, and each layer quantizes its
    own input just before it multiplies. (An engine also computes the logits of the last positions only.)
    """
    return activation_parts(config, batch, sequence).peak


# --- measured ---------------------------------------------------------------------------------------------------------


def process_bytes() -> int:
    """Resident bytes of this process."""
    return int(psutil.Process().memory_info().rss)


def device_bytes() -> int:
    """Bytes that live tensors hold on this process's GPUs; 0 where it uses none."""
    return sum(int(torch.cuda.memory_allocated(index)) for torch, index in _gpus())


def _gpus() -> list[tuple[Any, int]]:
    """torch and each GPU, if this process has opened one with it; asking must neither import torch nor open one."""
    torch = sys.modules.get("torch")
    return [(torch, i) for i in range(torch.cuda.device_count())] if torch and torch.cuda.is_initialized() else []


@dataclass(frozen=True)
class Released:
    """Memory before and after: of the GPU if the model was there (`where` is "device"), else of the process."""

    before_bytes: int
    after_bytes: int
    where: Literal["process", "device"]

    @property
    def freed_bytes(self) -> int:
        return self.before_bytes - self.after_bytes


def release(model: Any) -> Released:
    """Gives a model's memory back, although the caller's names still point to it; the model can't be used afterwards.

    `del model` frees nothing while a notebook's cell, its output history or a library's session still holds the object.
    So each of its tensors becomes one on the meta device, which has a shape and no storage: of all, as tensors read
    from one file share its mapping. A tensor that the caller took out of the model before keeps its own memory. A model
    just loaded from safetensors is hardly resident until it is used, and then there is little to give back.
    """
    import torch

    offload = sys.modules.get("compressed_tensors.offload")
    if offload is not None:  # llm-compressor wraps each module's tensors in a cache that refuses the meta device
        offload.remove_dispatch(model)
    on_device = any(parameter.device.type == "cuda" for parameter in model.parameters())
    read = device_bytes if on_device else process_bytes
    before = read()
    # Not the model's own methods: libraries override `to` to refuse quantized or dispatched models.
    torch.nn.Module.zero_grad(model)
    torch.nn.Module.to(model, "meta")
    return_free_memory()
    return Released(before, read(), "device" if on_device else "process")


def return_free_memory() -> None:
    """Collects Python's garbage and makes glibc and torch return the memory that they keep for later.

    On a GPU that includes what cuBLAS works in, which torch counts as a live tensor: 33 MiB for each stream on an H100.
    """
    gc.collect()
    for torch, _ in _gpus()[:1]:
        torch._C._cuda_clearCublasWorkspaces()  # has no public name; the next product makes them again
        torch.cuda.empty_cache()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries return memory by themselves
    if malloc_trim is not None:
        malloc_trim(0)


@dataclass
class Peak:
    """Memory over a block, in bytes: read it after the block. `grown_bytes`: how far the process grew in it."""

    before_bytes: int
    peak_bytes: int
    device_peak_bytes: int = 0

    @property
    def grown_bytes(self) -> int:
        return self.peak_bytes - self.before_bytes


@contextmanager
def peak() -> Iterator[Peak]:
    """Measures the largest resident size of this process in a block, by a thread that looks every 20 ms.

    Blocks may nest for the process; for GPUs the innermost one counts, as torch keeps one record.
    """
    now = process_bytes()
    found, ended = Peak(now, now), threading.Event()
    for torch, index in _gpus():
        torch.cuda.reset_peak_memory_stats(index)

    def look() -> None:
        while not ended.wait(0.02):
            found.peak_bytes = max(found.peak_bytes, process_bytes())

    thread = threading.Thread(target=look, name="labkit-peak", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.peak_bytes = max(found.peak_bytes, process_bytes())
        ended.set()
        thread.join()
        found.device_peak_bytes = sum(int(torch.cuda.max_memory_allocated(index)) for torch, index in _gpus())
