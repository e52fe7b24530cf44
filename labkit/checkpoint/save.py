"""Saves checkpoints atomically: staged, described by a manifest with each file's SHA-256, published by a rename."""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.workspace import publishing

GENERATION_CONFIG = "generation_config.json"


def save(model: Any, tokenizer: Any, final: Path, **facts: Any) -> None:
    """Writes model and tokenizer to `final`, in compressed form if the model was quantized by llm-compressor.

    facts: what the manifest says about how it was made (base, variant, recipe, calibration, versions). A kill at any
    moment leaves the old folder, none, or the new one. Weights are safetensors, in shards of at most 2 GB, whose
    SHA-256 are found side by side.
    """
    compressed = {"save_compressed": True} if getattr(model.save_pretrained, "_overridden", False) else {}
    with publishing(final, **facts) as stage:
        with _any_generation_config(model, stage), warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Attempting to save a model with offloaded modules"
            )  # they are on the CPU
            model.save_pretrained(stage, max_shard_size="2GB", **compressed)
        tokenizer.save_pretrained(stage)


@contextlib.contextmanager
def _any_generation_config(model: Any, stage: Path) -> Iterator[None]:
    """Saves a model's generation config as it is, valid or not.

    Real models ship configs that contradict themselves (a temperature beside do_sample=false); transformers loads them
    with a warning and refuses to save them. Servers read the temperature and ignore do_sample, so mending is no option.
    """
    import transformers

    original = getattr(model, "generation_config", None)
    if original is None:
        yield
        return
    model.generation_config = transformers.GenerationConfig()
    try:
        yield
        shipped = Path(str(getattr(model, "name_or_path", ""))) / GENERATION_CONFIG
        if shipped.is_file():
            shutil.copyfile(shipped, stage / GENERATION_CONFIG)
        else:
            original.to_json_file(stage / GENERATION_CONFIG, use_diff=True)
    finally:
        model.generation_config = original
