"""The folder of a model: its config and the safetensors that a loader reads; no pickle, no foreign code, no damage.

Whatever reads a model or hands its folder to an engine asks `refuse_unsafe` first.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labkit.errors import CheckpointError
from labkit.manifest import is_safe_name, require_intact

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json; raises CheckpointError if it is missing or not JSON."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"a {type(config).__name__}, and no object")
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} has no config.json",
            why="where a config.json can't be read, nothing says which model this is",
            fix="check the path",
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}", fix="check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}", fix="make or copy the checkpoint again") from error
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a loader reads: those of the index, else the single one.

    Raises CheckpointError if one is missing, or if only pickles are there.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            if strange := [name for name in names if "/" in name or not is_safe_name(name)]:
                raise ValueError(f"{strange[0]!r} is no file of the folder")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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


def refuse_unsafe(folder: Path) -> dict[str, Any]:
    """The config of a checkpoint that may be loaded.

    Raises CheckpointError unless it has safetensors, needs no code of its own, and is as its manifest says, if it has
    one (`require_intact`).
    """
    require_intact(folder)
    config = read_config(folder)
    if config.get("auto_map"):
        raise CheckpointError(
            f"{folder / 'config.json'} asks for code of its own (auto_map: {', '.join(config['auto_map'])})",
            why="labkit never runs code that a checkpoint brings along",
            fix="use a model whose architecture transformers has",
        )
    weight_files(folder)
    return config
