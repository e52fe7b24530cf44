"""A model to measure speed with: 0.4 billion random weights from a seed, in the shape of Qwen2-0.5B.

How long a matrix product takes does not depend on the numbers in it, so random weights serve as well as trained ones;
what they answer is noise, so they say nothing of accuracy. The embedded model is too small for speed: its layers take
microseconds, and what is measured then is everything around them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"  # of the embedded model, whose tokenizer this one has
SPEED_SEED = 0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def materialize_speed_model(folder: Path) -> None:
    """Writes the model into `folder` as a BF16 checkpoint of 387 million parameters, with the embedded tokenizer."""
    import torch
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=32_000,  # Qwen2's is five times as large, which would be half of the model
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SPEED_SEED)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(WEIGHTS / name, folder / name)
