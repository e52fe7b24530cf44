"""What quantization did to the weights: the dequantized ones of a checkpoint against those of its base model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.checkpoint.headers import TensorInfo, read_headers
from labkit.checkpoint.inspect import Layer, inspect, part_of
from labkit.errors import CheckpointError
from labkit.modelfolder import read_config

if TYPE_CHECKING:
    import torch

# Which norm feeds a linear layer, for the layer names that llm-compressor's SmoothQuant mappings know.
NORM_OF = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), ("input_layernorm",)),
    **dict.fromkeys(("gate_proj", "up_proj"), ("pre_feedforward_layernorm", "post_attention_layernorm")),
}
MX_BIAS = 127  # of E8M0, the exponents that MX formats keep as scales
OFFSET_NORMS = ("gemma", "qwen3_next", "qwen3_5")  # model types whose RMSNorm multiplies by 1 + weight


def weight_errors(folder: Path, base: Path) -> dict[str, float]:
    """The relative Frobenius error ‖Ŵ − W‖ / ‖W‖ of each quantized layer, Ŵ dequantized, W the base model's.

    SmoothQuant divides a norm's output by s and multiplies the weights behind it by s; that is undone first, with s
    read from the two checkpoints' norms, so that the error is that of rounding alone. Raises CheckpointError if the two
    are not the same architecture. One layer is in memory at a time, in float32.
    """
    stored, original = _Tensors(folder), _Tensors(base)
    offset = 1.0 if str(read_config(base).get("model_type", "")).startswith(OFFSET_NORMS) else 0.0
    errors = {}
    for layer in inspect(folder).layers:
        if layer.weights is None:
            continue
        weight = original.get(_name_in_base(layer.name, original)).float()  # [out, in]
        found = dequantize(layer, stored)  # [out, in]
        if found.shape != weight.shape:
            raise CheckpointError(
                f"{layer.name} is {list(found.shape)} in {folder} and {list(weight.shape)} in {base}",
                why="they are not the same model",
                fix="compare a checkpoint with the model it was made from",
            )
        found = found * _smoothing_undone(layer.name, stored, original, offset)
        size = float(weight.norm())
        errors[layer.name] = float((found - weight).norm()) / size if size else math.inf
    return errors


def weight_scales(folder: Path, layer: str) -> torch.Tensor:
    """What the codes of a quantized layer's weight are multiplied with, float32: [1], [out, 1] or [out, groups].

    Raises CheckpointError for a layer that is not there or not quantized.
    """
    found = next((known for known in inspect(folder).layers if known.name == layer and known.weights), None)
    if found is None:
        raise CheckpointError(f"{folder} has no quantized layer {layer}", fix="labkit.checkpoint.inspect names them")
    return _scales(found, _Tensors(folder))


def _name_in_base(layer: str, original: _Tensors) -> str:
    """Where the base model keeps a layer's weight: a head tied to the embeddings has none of its own."""
    name = f"{layer}.weight"
    if name not in original.infos and part_of(name) == "lm_head":
        return next((other for other in original.infos if part_of(other) == "embeddings"), name)
    return name


def dequantize(layer: Layer, tensors: _Tensors) -> torch.Tensor:
    """A layer's weights as the engine computes with them: [out, in], float32."""
    assert layer.weights is not None
    if f"{layer.name}.weight_zero_point" in tensors.infos:
        raise CheckpointError(f"{layer.name} has zero points", fix="compare a symmetric scheme")
    scale = _scales(layer, tensors)
    if layer.weights.group_size and scale.ndim == 2:
        scale = scale.repeat_interleave(layer.weights.group_size, dim=1)[:, : layer.shape[1]]
    return _codes(layer, tensors) * (scale.reshape(-1, 1) if scale.ndim == 1 and scale.numel() > 1 else scale)


def _codes(layer: Layer, tensors: _Tensors) -> torch.Tensor:
    """A layer's grid points before any scale: [out, in], float32."""
    import torch

    assert layer.weights is not None
    if f"{layer.name}.weight_packed" not in tensors.infos:
        return tensors.get(f"{layer.name}.weight").float()
    packed = tensors.get(f"{layer.name}.weight_packed")
    if layer.weights.kind == "float":
        from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

        return unpack_fp4_from_uint8(packed, *layer.shape, dtype=torch.float32)
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    return unpack_from_int32(packed, layer.weights.bits, torch.Size(layer.shape)).float()


def _scales(layer: Layer, tensors: _Tensors) -> torch.Tensor:
    """What a layer's codes are multiplied with, float32: [1], [out, 1] or [out, groups]."""
    import torch

    scale = tensors.get(f"{layer.name}.weight_scale")
    if scale.dtype == torch.uint8:  # MX: nothing but an exponent
        return torch.ldexp(torch.ones_like(scale, dtype=torch.float32), scale.int() - MX_BIAS)
    if f"{layer.name}.weight_global_scale" in tensors.infos:  # NVFP4: FP8 scales were brought into range with it
        return scale.float() / tensors.get(f"{layer.name}.weight_global_scale").float()
    return scale.float()


def _smoothing_undone(name: str, stored: _Tensors, original: _Tensors, offset: float) -> Any:
    """1/s for each input channel of a layer behind a norm, [in]; 1.0 where nothing was smoothed."""
    block, _, kind = name.rpartition(".")
    root = block.rpartition(".")[0]  # model.layers.3.self_attn -> model.layers.3
    for norm in NORM_OF.get(kind, ()):
        key = f"{root}.{norm}.weight"
        if key in stored.infos and key in original.infos:
            return (offset + stored.get(key).float()) / (offset + original.get(key).float())
    return 1.0


class _Tensors:
    """The tensors of a checkpoint, read one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.infos: Mapping[str, TensorInfo] = read_headers(folder)

    def get(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        if name not in self.infos:
            raise CheckpointError(f"{self.folder} has no tensor {name}", fix="compare with the model it was made from")
        with safe_open(self.infos[name].file, "pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor
