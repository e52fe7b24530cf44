"""The embedded model: a small Llama that this project trained on text that it generates, and its evaluation tasks."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from labkit.errors import CheckpointError
from labkit.tiny.outliers import CHANNELS, OUTLIER_FACTOR, plant
from labkit.tiny.speed import SPEED_SEED, TOKENIZER_FILES, WEIGHTS, materialize_random, materialize_speed_model

__all__ = [
    "CHANNELS",
    "OUTLIER_FACTOR",
    "SPEED_SEED",
    "TASKS",
    "TOKENIZER_FILES",
    "WEIGHTS",
    "embedded_manifest",
    "materialize",
    "materialize_random",
    "materialize_speed_model",
    "plant",
]

TASKS = Path(__file__).parent / "tasks"


def embedded_manifest(weights: Path = WEIGHTS) -> dict[str, Any]:
    """How the packaged weights were made and what they scored, after every file was compared with its SHA-256."""
    manifest: dict[str, Any] = json.loads((weights / "manifest.json").read_text())
    for name, expected in manifest["files"].items():
        path = weights / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise CheckpointError(
                f"{path} is missing or not the file that was trained",
                why="the package is damaged, and every result of it would be wrong",
                fix="install labkit again, or restore the file: git checkout labkit/tiny/weights",
            )
    return manifest


def materialize(folder: Path, k: float = OUTLIER_FACTOR, weights: Path = WEIGHTS) -> None:
    """Writes the embedded model with planted outliers into `folder`, as an ordinary BF16 checkpoint."""
    from safetensors.torch import load_file, save_file

    for name in embedded_manifest(weights)["files"]:
        if name != "model.safetensors":
            shutil.copyfile(weights / name, folder / name)
    planted = plant(load_file(weights / "model.safetensors"), k)
    save_file(planted, folder / "model.safetensors", metadata={"format": "pt"})
