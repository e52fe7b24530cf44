"""A model to measure speed with: 0.4 billion random weights from a seed, two layers as wide as an 8B model's.

How long a matrix product takes does not depend on the numbers in it, so random weights serve as well as trained ones;
what they answer is noise, so they say nothing of accuracy. The embedded model is too small for speed: its layers take
microseconds, and what is measured then is everything around them. For the same reason the layers here are few and wide:
in 24 layers of a quarter of the width, calls, norms and the vocabulary take a share that they don't have in a large
model, and each layer's compilation its seconds.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent / "weights"  # of the embedded model, whose tokenizer this one has
SPEED_SEED = 0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def materialize_speed_model(folder: Path) -> None:
    """Writes the model into `folder` as a BF16 checkpoint of 409 million parameters, with the embedded tokenizer."""
    import transformers

    config = transformers.LlamaConfig(  # granite-3.1-8b: two of its 40 layers, a 20th of its 49,155 words
        vocab_size=2560,
        hidden_size=4096,
        intermediate_size=12_800,
        num_hidden_layers=2,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    materialize_random(folder, config)


def materialize_random(folder: Path, config: Any, *, max_shard_size: str = "5GB") -> None:
    """Writes a BF16 checkpoint of a transformers config: seeded random weights, the embedded tokenizer."""
    import torch
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SPEED_SEED)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    for name in TOKENIZER_FILES:
        shutil.copyfile(WEIGHTS / name, folder / name)
