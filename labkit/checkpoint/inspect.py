"""What a checkpoint really holds: the scheme of each layer, where the bytes are, and whether config and tensors agree.

Everything but the check of values comes from the headers of the safetensors files and from config.json, so a 7B
checkpoint is described in well under a second.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.checkpoint.headers import TensorInfo, read_headers
from labkit.checkpoint.schemes import GROUPED, PLAIN, Claim, Quantization, claim_for, read_claims
from labkit.modelfolder import read_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

GROUPS = ("embeddings", "lm_head", "linear", "scales", "other")
WEIGHTS = ("weight", "weight_packed")
SCALES: tuple[str, ...] = (
    *("weight_scale", "weight_zero_point", "weight_global_scale", "weight_shape", "weight_g_idx"),
    *("input_scale", "input_zero_point", "input_global_scale", "output_scale", "q_scale", "k_scale", "v_scale"),
)
GROUP_SCALES = (*PLAIN, "F8_E4M3", "F8_E8M0", "U8")
STORED = {("int", 8): ("I8", "I32"), ("float", 8): ("F8_E4M3",), ("int", 4): ("I32",), ("float", 4): ("U8",)}


@dataclass(frozen=True)
class Layer:
    """One linear layer. scheme: what its tensors and the config say together; shape: [out, in] of the weight.

    dtype: as stored. weights, activations: how they are quantized, or None. bytes: weight and scales together.
    """

    name: str
    scheme: str
    dtype: str
    shape: tuple[int, int]
    weights: Quantization | None
    activations: Quantization | None
    bytes: int


@dataclass(frozen=True)
class TensorGroup:
    """Some tensors taken together: `embeddings`, `lm_head`, `linear` (weights), `scales` or `other` (norms, biases)."""

    name: str
    tensors: int
    bytes: int
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found. total_bytes: of all tensors; file_bytes: of the safetensors files, headers included.

    mismatches: where config and tensors disagree, in words. not_finite: tensors with NaN or infinity, or None if the
    values were not read. kv_cache: the scheme of a quantized KV cache, or "".
    """

    folder: Path
    layers: tuple[Layer, ...]
    groups: tuple[TensorGroup, ...]
    total_bytes: int
    file_bytes: int
    format: str
    kv_cache: str
    tied: bool
    mismatches: tuple[str, ...]
    not_finite: tuple[str, ...] | None

    @property
    def schemes(self) -> dict[str, str]:
        """Layer name to scheme; `bf16` where a layer is not quantized."""
        return {layer.name: layer.scheme for layer in self.layers}

    def group(self, name: str) -> TensorGroup:
        """The group of that name; an empty one if there are no such tensors."""
        return next((group for group in self.groups if group.name == name), TensorGroup(name, 0, 0, ()))


def inspect(folder: Path, *, values: bool = False) -> Inspection:
    """Describes a checkpoint; `values` also reads every tensor and looks for NaN and infinity.

    Raises CheckpointError if the folder is no checkpoint or a file of it is cut.
    """
    config, tensors = read_config(folder), read_headers(folder)
    quantization = config.get("quantization_config") or {}
    claims, ignore = read_claims(config), list(quantization.get("ignore") or ())
    layers, mismatches = [], []
    for module in _linear_modules(tensors):
        claim = claim_for(module, claims, ignore)
        layer, complaints = _describe(module, tensors, claim)
        layers.append(layer)
        mismatches += complaints
    head = next((layer for layer in layers if part_of(f"{layer.name}.weight") == "lm_head"), None)
    if config.get("tie_word_embeddings") and head and head.weights:
        mismatches.append(f"{head.name}: config.json ties it to the embeddings, the file holds its own, quantized")
    if claims and not any(layer.weights for layer in layers):
        mismatches.append("config.json says that the model is quantized, and no layer is")
    for name in tensors:
        if part_of(name) == "embeddings" and f"{name}_scale" in tensors:
            mismatches.append(f"{name}: embeddings are quantized, and engines read only linear layers so")
    cache = Quantization.parse(quantization.get("kv_cache_scheme"))
    return Inspection(
        folder,
        tuple(layers),
        _groups(tensors),
        total_bytes=sum(tensor.bytes for tensor in tensors.values()),
        file_bytes=sum(path.stat().st_size for path in {tensor.file for tensor in tensors.values()}),
        format=str(quantization.get("format") or ""),
        kv_cache=f"{'fp' if cache.kind == 'float' else 'int'}{cache.bits}" if cache else "",
        tied=bool(config.get("tie_word_embeddings")) and not any(part_of(name) == "lm_head" for name in tensors),
        mismatches=tuple(mismatches),
        not_finite=tuple(_not_finite(tensors)) if values else None,
    )


def part_of(tensor: str) -> str:
    """Which of GROUPS a tensor belongs to, by its name (a two-dimensional weight elsewhere is a linear layer's)."""
    module, _, kind = tensor.rpartition(".")
    if kind in SCALES:
        return "scales"
    last = module.rsplit(".", 1)[-1]
    if last == "lm_head":
        return "lm_head"
    return "embeddings" if "embed" in last or last in ("wte", "wpe") else "linear"


def _linear_modules(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Modules with a matrix that is no embedding table, in the order stored."""
    return [
        name.rpartition(".")[0]
        for name, tensor in tensors.items()
        if name.endswith((".weight", ".weight_packed")) and len(tensor.shape) == 2 and part_of(name) != "embeddings"
    ]


def _groups(tensors: Mapping[str, TensorInfo]) -> tuple[TensorGroup, ...]:
    linear = set(_linear_modules(tensors))
    held: dict[str, list[TensorInfo]] = {name: [] for name in GROUPS}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        part = part_of(name)
        held["other" if part == "linear" and (module not in linear or kind not in WEIGHTS) else part].append(tensor)
    return tuple(
        TensorGroup(name, len(group), sum(t.bytes for t in group), tuple(sorted(Counter(t.dtype for t in group))))
        for name, group in held.items()
        if group
    )


def _describe(module: str, tensors: Mapping[str, TensorInfo], claim: Claim | None) -> tuple[Layer, list[str]]:
    """One layer as its tensors and the config say, and where these two disagree."""
    weight = next(tensors[f"{module}.{kind}"] for kind in WEIGHTS if f"{module}.{kind}" in tensors)
    own = [tensors[f"{module}.{kind}"] for kind in (*WEIGHTS, *SCALES) if f"{module}.{kind}" in tensors]
    claimed = claim.weights if claim else None
    complaints = []
    if claimed and weight.dtype not in STORED.get((claimed.kind, claimed.bits), ()):
        complaints.append(f"{module}: config.json says {claimed}, the file holds {weight.dtype}")
    elif claim and claimed:
        complaints += _scale_complaints(module, weight, tensors, claim, claimed)
    elif claimed is None and weight.dtype not in PLAIN:
        complaints.append(f"{module}: config.json says not quantized, the file holds {weight.dtype}")
    really = claim if claimed and not (complaints and weight.dtype in PLAIN) else None
    scheme = really.scheme if really else PLAIN.get(weight.dtype, weight.dtype.lower())
    shape = (weight.shape[0], weight.shape[1] * _values_per_word(weight, claimed))
    return Layer(
        module,
        scheme,
        weight.dtype,
        shape,
        really.weights if really else None,
        really.activations if really else None,
        bytes=sum(tensor.bytes for tensor in own),
    ), complaints


def _values_per_word(weight: TensorInfo, claimed: Quantization | None) -> int:
    """How many weights one stored number packs."""
    word = {"I32": 32, "U8": 8}.get(weight.dtype)
    return word // claimed.bits if word and claimed else 1


def _scale_complaints(
    module: str, weight: TensorInfo, tensors: Mapping[str, TensorInfo], claim: Claim, claimed: Quantization
) -> list[str]:
    scale = tensors.get(f"{module}.weight_scale")
    if scale is None:
        return [f"{module}: config.json says {claimed}, the file holds no weight_scale"]
    rows, columns = weight.shape[0], weight.shape[1] * _values_per_word(weight, claimed)
    wanted: dict[str, list[tuple[int, ...]]] = {"tensor": [(), (1,)], "channel": [(rows,), (rows, 1)]}
    if claimed.strategy in GROUPED and claimed.group_size:
        wanted[claimed.strategy] = [(rows, -(-columns // claimed.group_size))]
    complaints = []
    if scale.dtype not in (GROUP_SCALES if claimed.strategy in GROUPED else PLAIN):
        complaints.append(f"{module}: config.json says {claimed}, the scales are stored as {scale.dtype}")
    if claimed.strategy in wanted and scale.shape not in wanted[claimed.strategy]:
        complaints.append(f"{module}: config.json says {claimed}, the scales have shape {list(scale.shape)}")
    static = claim.activations is not None and not claim.activations.dynamic
    stored = any(f"{module}.{kind}" in tensors for kind in ("input_scale", "input_global_scale"))
    if static and not stored:
        complaints.append(f"{module}: config.json says static activation scales, the file holds none")
    if stored and not static and not (claim.activations and claim.activations.strategy in GROUPED):
        complaints.append(f"{module}: config.json says no static activation scales, the file holds some")
    return complaints


def odd_scales(folder: Path) -> list[str]:
    """Names of the scales with NaN or infinity; only they are read."""
    return _not_finite({name: tensor for name, tensor in read_headers(folder).items() if part_of(name) == "scales"})


def _not_finite(tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Names of the tensors with NaN or infinity; one tensor in memory at a time."""
    from safetensors import safe_open

    bad = []
    for path in sorted({tensor.file for tensor in tensors.values()}):
        with safe_open(path, "pt") as file:
            bad += [n for n, t in tensors.items() if t.file == path and not _finite(file.get_tensor(n))]
    return bad


def _finite(tensor: torch.Tensor) -> bool:
    import torch

    if not tensor.is_floating_point():
        return True
    if tensor.dtype == torch.float8_e4m3fn:  # no infinities; NaN is all ones behind the sign
        return not bool(((tensor.view(torch.uint8) & 0x7F) == 0x7F).any())
    values: Any = tensor.float() if tensor.itemsize == 1 else tensor
    return bool(torch.isfinite(values).all())
