"""The files of a checkpoint: its config, and the safetensors that a loader reads; no pickle, no foreign code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labkit.errors import CheckpointError

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json; raises CheckpointError if it is missing or not JSON."""
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} has no config.json", why="so it is no checkpoint", fix="check the path"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}", fix="make or copy the checkpoint again") from error
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a loader reads: those of the index, else the single one.

    Raises CheckpointError if one is missing, or if only pickles are there.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: {error}", fix="make or copy the checkpoint again") from error
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise CheckpointError(
                f"{folder} lacks {', '.join(missing)}",
                why=f"its index lists {len(names)} files; tensors would be filled with random numbers",
                fix="copy or download the checkpoint again",
            )
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    raise CheckpointError(
        f"{folder} has no safetensors file" + (f", only {', '.join(pickles)}" if pickles else ""),
        why="a pickle can run any code when it is opened, so it is never loaded" if pickles else "there are no weights",
        fix="use a checkpoint in safetensors; save_pretrained() writes it",
    )


def refuse_unsafe(folder: Path) -> None:
    """Raises CheckpointError unless `folder` is a checkpoint with safetensors that needs no code of its own."""
    config = read_config(folder)
    if config.get("auto_map"):
        raise CheckpointError(
            f"{folder / 'config.json'} asks for code of its own (auto_map: {', '.join(config['auto_map'])})",
            why="labkit never runs code that a checkpoint brings along",
            fix="use a model whose architecture transformers has",
        )
    weight_files(folder)
