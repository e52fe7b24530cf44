"""A model's config, read without running anybody's code and without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from labkit.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# A config as a dict, as transformers' object, or as the path of a config.json or of a folder that holds one.
Config: TypeAlias = "Mapping[str, Any] | str | Path | PreTrainedConfig"

# Qwen2.5-7B-Instruct, as its config.json says; the model of the workbench profile, so that its arithmetic needs no hub.
QWEN_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}

# And Qwen2.5-72B-Instruct, which no single GPU holds in BF16.
QWEN_72B: dict[str, Any] = {
    **QWEN_7B,
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 29568,
}


def read_config(config: Config) -> dict[str, Any]:
    """A config as plain data, from a dict, a transformers config, a config.json or a folder that holds one.

    Raises DataError if the file is missing or is not a config.
    """
    if isinstance(config, Mapping):
        plain = dict(config)
    elif isinstance(config, (str, Path)):
        path = Path(config)
        path = path / "config.json" if path.is_dir() else path
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} can't be read as a config: {error}", fix="give a checkpoint's folder") from error
    else:
        plain = config.to_dict()
    if "model_type" not in plain:
        raise DataError(
            "the config has no model_type", why="it names the architecture", fix="use a Hugging Face config"
        )
    return {name: value for name, value in plain.items() if name not in ("quantization_config", "auto_map")}


def text_config(config: Config) -> PreTrainedConfig:
    """The language model's part of a config, with the architecture's defaults filled in."""
    from transformers import AutoConfig

    plain = read_config(config)
    try:
        found: PreTrainedConfig = AutoConfig.for_model(**plain).get_text_config()
    except ValueError as error:
        raise DataError(
            f"transformers knows no architecture {plain['model_type']!r}",
            why="code from a model's own folder is never run",
            fix="choose a model that transformers itself implements",
        ) from error
    return found
