"""Random-weight checkpoints for tests: real architectures and real files, small enough to make in a second."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from labkit.tiny.tokenizer import train_tokenizer

Architecture = Literal["llama", "qwen2", "qwen3", "granite", "mistral", "gemma", "opt"]

_CONFIGS = {
    "llama": transformers.LlamaConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "granite": transformers.GraniteConfig,
    "mistral": transformers.MistralConfig,
    "gemma": transformers.GemmaConfig,
    "opt": transformers.OPTConfig,
}
HEAD_DIM = 32


@functools.cache
def small_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """The embedded model's kind of tokenizer, trained on 500 rows."""
    return train_tokenizer(rows=500)


def make_model(
    folder: Path,
    architecture: Architecture = "llama",
    *,
    hidden: int = 128,
    layers: int = 2,
    tied: bool = False,
    shard_size: str | None = None,
    seed: int = 0,
    **config: Any,
) -> Path:
    """Writes a BF16 checkpoint with seeded random weights and a chat tokenizer into `folder`, and returns that.

    The vocabulary is the tokenizer's. `shard_size` ("200KB") splits the weights into several files; `config` overrides
    or adds fields of the architecture's config class. Gemma ties its embeddings only if `tied` says so, as all others.
    """
    tokenizer = small_tokenizer()
    heads = hidden // HEAD_DIM
    fields: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "head_dim": HEAD_DIM,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tied,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if architecture == "mistral":
        fields["sliding_window"] = None
    if architecture == "opt":  # other names, biases everywhere, learned positions
        fields |= {"ffn_dim": 2 * hidden, "word_embed_proj_dim": hidden}
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        _CONFIGS[architecture](**(fields | config)), dtype=torch.bfloat16
    )
    model.generation_config.do_sample = False
    model.save_pretrained(folder, **({"max_shard_size": shard_size} if shard_size else {}))
    tokenizer.save_pretrained(folder)
    return folder
