"""The scales of a quantized KV cache: calibrated once, stored beside the weights, one for keys and one for values."""

from __future__ import annotations

import shutil
from pathlib import Path

from labkit.checkpoint.headers import read_headers
from labkit.errors import CheckpointError

SUFFIXES = (".k_scale", ".v_scale")


def cache_scales(folder: Path) -> dict[str, float]:
    """Every layer's scales by tensor name; empty for a checkpoint whose cache was not calibrated.

    A cached number is the key or value divided by its scale: the scale is the largest magnitude met in calibration
    over 448, the largest number of E4M3.
    """
    from safetensors import safe_open

    found = {}
    for name, tensor in read_headers(folder).items():
        if name.endswith(SUFFIXES):
            with safe_open(tensor.file, framework="pt") as file:
                found[name] = float(file.get_tensor(name).float())
    return found


def rescale_cache(folder: Path, stage: Path, factor: float) -> None:
    """Writes into `stage` a copy of a checkpoint whose cache scales are `factor` times as large.

    Raises CheckpointError if there are none: the copy would be an equal one under another name.
    """
    from safetensors.torch import load_file, save_file

    names = set(cache_scales(folder))
    if not names:
        raise CheckpointError(f"{folder} has no scales of a KV cache", fix="calibrate it with a kv_cache_scheme")
    for path in filter(Path.is_file, folder.iterdir()):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, stage / path.name)
            continue
        tensors = load_file(path)
        save_file(
            {name: tensor * factor if name in names else tensor for name, tensor in tensors.items()},
            stage / path.name,
            metadata={"format": "pt"},
        )
