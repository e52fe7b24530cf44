"""Ways to spoil a copy of a checkpoint, for tests that something notices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from labkit.files import MANIFEST


def copy_with_tensors(folder: Path, to: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy whose tensors went through `change`, in place; without its manifest, which would show it at once."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns(MANIFEST))
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def copy_with_config(folder: Path, to: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy whose config.json went through `change`, in place; without its manifest."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns(MANIFEST))
    config = json.loads((to / "config.json").read_text())
    change(config)
    (to / "config.json").write_text(json.dumps(config))
    return to
