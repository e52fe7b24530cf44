"""Loads checkpoints strictly, saves them atomically, and reads what quantization left in them: weights and scales.

transformers fills a tensor that a checkpoint lacks with random values and goes on; its loading report says so, and here
that report decides. Only safetensors are read, and no code that a repository brings along is run.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.checkpoint.folder import AGAIN, TensorInfo, read_headers, read_tensor, refuse_unsafe, weight_files
from labkit.checkpoint.inspect import Inspection, Layer, inspect, not_finite, part_of
from labkit.errors import CheckpointError, first_line
from labkit.files import MANIFEST, publishing

if TYPE_CHECKING:
    import torch

MOST_NAMED = 5
SHOW_BARS_BYTES = 2_000_000_000  # below, loading takes seconds and a bar is noise


def load(folder: Path, dtype: str = "auto") -> Any:
    """The model of a checkpoint, on the CPU, in evaluation mode; every tensor comes from the files.

    A compressed-tensors checkpoint is dequantized to dense weights while its activations are still rounded as the
    scheme says: this shows accuracy, not speed or memory. dtype: as transformers' `dtype`. Raises CheckpointError
    naming the missing, unexpected and misshapen tensors, or the damaged file. Tied tensors count as present.
    """
    import transformers

    more = {}
    if refuse_unsafe(folder).get("quantization_config"):
        _as_claimed(folder)
        more = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)}
    large = sum(path.stat().st_size for path in weight_files(folder)) > SHOW_BARS_BYTES
    hidden = contextlib.nullcontext() if large else contextlib.redirect_stderr(io.StringIO())
    try:
        with hidden, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You passed `quantization_config`")  # to say "dequantize", as meant
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                output_loading_info=True,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are in the report, all at once and with names
                **more,
            )
    except Exception as error:  # a cut file, an unknown architecture, a config that contradicts itself, ...
        raise CheckpointError(
            f"{folder} can't be loaded: {type(error).__name__}: {first_line(error)}",
            why="a file is damaged, or this transformers does not know the architecture",
            fix=f"{AGAIN}; labkit_manifest.json, where there is one, has each file's SHA-256",
        ) from error
    model, report = loaded
    reported = {key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]}
    found = {
        "missing": report["missing_keys"],
        "unexpected": report["unexpected_keys"],
        "of another shape than config.json says": reported | _misshapen(model),
    }
    complaints = [f"{what}: {_listed(sorted(names))}" for what, names in found.items() if names]
    complaints += map(str, report["error_msgs"])
    if complaints:
        raise CheckpointError(
            f"{folder} does not hold the tensors of its architecture; {'; '.join(complaints)}",
            why="transformers would fill what is missing with random numbers and go on",
            fix=f"{AGAIN}; if it was edited, restore config.json and the index too",
        )
    return model.eval()


def _as_claimed(folder: Path) -> Inspection:
    """Raises CheckpointError if the tensors are not what config.json calls them; most would load all the same."""
    found = inspect(folder)
    odd = not_finite(tensor for name, tensor in read_headers(folder).items() if part_of(name) == "scales")
    if wrong := [*found.mismatches, *(f"{name} holds NaN or infinity" for name in odd)]:
        what = f"{folder} is not what its config.json says: {_listed(wrong, '; ')}"
        raise CheckpointError(what, "the model would compute something else than what was made", AGAIN)
    return found


def _misshapen(model: Any) -> set[str]:
    """Parameters of another shape than the config asks for; transformers overlooks them in quantized checkpoints."""
    import torch
    import transformers

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):  # shapes without memory
        wanted = dict(transformers.AutoModelForCausalLM.from_config(config).named_parameters())
    return {name for name, p in model.named_parameters() if name in wanted and p.shape != wanted[name].shape}


def _listed(names: list[str], between: str = ", ") -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return between.join(names[:MOST_NAMED]) + more


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer beside a checkpoint; raises CheckpointError if there is none that loads without remote code."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError or the tokenizers library's own
        raise CheckpointError(
            f"the tokenizer in {folder} can't be loaded: {type(error).__name__}: {first_line(error)}",
            why="without it text can't be turned into the token ids that the model was trained on",
            fix="copy tokenizer.json, tokenizer_config.json and chat_template.jinja from the base model",
        ) from error


def save(model: Any, tokenizer: Any, final: Path, **facts: Any) -> None:
    """Writes model and tokenizer to `final`, in compressed form if the model was quantized by llm-compressor.

    facts: what the manifest says about how it was made (base, variant, recipe, calibration, versions). A kill at any
    moment leaves the old folder, none, or the new one. Weights are safetensors, in shards of at most 2 GB. The
    generation config is kept as it is: real models ship some that contradict themselves (a temperature beside
    do_sample=false), which transformers refuses to save and servers read.
    """
    import transformers

    compressed = {"save_compressed": True} if getattr(model.save_pretrained, "_overridden", False) else {}
    generation = getattr(model, "generation_config", None)
    with publishing(final, **facts) as stage, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Attempting to save a model with offloaded modules")  # they are on the CPU
        model.generation_config = transformers.GenerationConfig() if generation else None
        try:
            model.save_pretrained(stage, max_shard_size="2GB", **compressed)
        finally:
            model.generation_config = generation
        if generation:
            generation.to_json_file(stage / "generation_config.json", use_diff=True)
        tokenizer.save_pretrained(stage)


# --- the scales of a quantized KV cache -------------------------------------------------------------------------------


def cache_scales(folder: Path) -> dict[str, float]:
    """Every layer's scales by tensor name; empty for a checkpoint whose KV cache was not calibrated.

    A cached number is the key or value divided by its scale: the scale is the largest magnitude met in calibration
    over 448, the largest number of E4M3.
    """
    scales = {name: t for name, t in read_headers(folder).items() if name.endswith((".k_scale", ".v_scale"))}
    return {name: float(read_tensor(tensor).float()) for name, tensor in scales.items()}


def rescale_cache(folder: Path, final: Path, factor: float) -> None:
    """Publishes, as `final`, a copy of a checkpoint whose cache scales are `factor` times as large.

    Raises CheckpointError if there are none: the copy would be an equal one under another name.
    """
    from safetensors.torch import load_file, save_file

    names = cache_scales(folder).keys()
    if not names:
        raise CheckpointError(f"{folder} has no scales of a KV cache", fix="calibrate it with a kv_cache_scheme")
    with publishing(final, base=folder.name, variant=final.name, cache_scale_factor=factor) as stage:
        shutil.copytree(folder, stage, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST, "*.safetensors"))
        for path in weight_files(folder):
            tensors = {name: t * factor if name in names else t for name, t in load_file(path).items()}
            save_file(tensors, stage / path.name, metadata={"format": "pt"})


# --- quantized weights ------------------------------------------------------------------------------------------------

MX_BIAS = 127  # of E8M0, the exponents that MX formats keep as scales
Tensors = Mapping[str, TensorInfo]


def weight_errors(folder: Path, base: Path) -> dict[str, float]:
    """The relative Frobenius error ‖Ŵ − W‖ / ‖W‖ of each quantized layer, Ŵ dequantized, W the base model's.

    Raises CheckpointError if the two are not the same architecture, or if the norms differ: smoothing and rotation move
    numbers from norms to weights, which is no error. One layer is in memory at a time, in float32.
    """
    layers, stored, original = _as_claimed(folder).layers, read_headers(folder), read_headers(base)
    errors = {}
    for layer in (layer for layer in layers if layer.weights):
        name = f"{layer.name}.weight"
        if name not in original and part_of(name) == "lm_head":  # tied: the embeddings are its weight
            name = next((other for other in original if part_of(other) == "embeddings"), name)
        if name not in original or original[name].shape != layer.shape:
            what = f"{base} has no tensor {name} of shape {list(layer.shape)}, as {folder} has"
            raise CheckpointError(what, "they are not the same model", "compare with the model that it was made from")
        weight = read_tensor(original[name]).float()  # [out, in]
        size = float(weight.norm())
        errors[layer.name] = float((_dequantized(layer, stored) - weight).norm()) / size if size else math.inf
    for name in (name for name in stored if name.endswith("norm.weight") and name in original):
        if not read_tensor(stored[name]).float().equal(read_tensor(original[name]).float()):
            why = "so its weights were scaled or rotated before they were rounded"
            raise CheckpointError(f"{name} of {folder} is not that of {base}", why, "compare what these models predict")
    return errors


def weight_scales(folder: Path, layer: str) -> torch.Tensor:
    """What the codes of a quantized layer's weight are multiplied with, float32: [1, 1], [out, 1] or [out, groups].

    Raises CheckpointError for a layer that is not there or not quantized.
    """
    tensors = read_headers(folder)
    if f"{layer}.weight_scale" not in tensors:
        raise CheckpointError(f"{folder} has no quantized layer {layer}", fix="labkit.checkpoint.inspect names them")
    return _scales(layer, tensors)


def _scales(layer: str, tensors: Tensors) -> torch.Tensor:
    import torch

    scale = read_tensor(tensors[f"{layer}.weight_scale"])
    if scale.dtype == torch.uint8:  # MX: nothing but an exponent
        scale = torch.ldexp(torch.ones_like(scale, dtype=torch.float32), scale.int() - MX_BIAS)
    if f"{layer}.weight_global_scale" in tensors:  # NVFP4: it keeps the FP8 scales in FP8's range
        scale = scale.float() / read_tensor(tensors[f"{layer}.weight_global_scale"]).float()
    return scale.float() if scale.ndim == 2 else scale.float().reshape(-1, 1)


def _dequantized(layer: Layer, tensors: Tensors) -> torch.Tensor:
    """A quantized layer's weights as the engine computes with them: [out, in], float32."""
    import torch
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    assert layer.weights is not None
    if f"{layer.name}.weight_zero_point" in tensors:
        raise CheckpointError(f"{layer.name} has zero points", fix="compare a symmetric scheme")
    packed = tensors.get(f"{layer.name}.weight_packed")
    if packed is None:
        codes = read_tensor(tensors[f"{layer.name}.weight"]).float()
    elif layer.weights.kind == "float":
        codes = unpack_fp4_from_uint8(read_tensor(packed), *layer.shape, dtype=torch.float32)
    else:
        codes = unpack_from_int32(read_tensor(packed), layer.weights.bits, torch.Size(layer.shape)).float()
    scale = _scales(layer.name, tensors)
    if layer.weights.group_size:
        scale = scale.repeat_interleave(layer.weights.group_size, dim=1)[:, : layer.shape[1]]
    return codes * scale
