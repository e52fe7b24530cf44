"""What tests work with: random-weight checkpoints of real architectures, made in a second; what llm-compressor makes
of them; a context for engines."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from labkit.data import CalibrationSet
from labkit.profiles import TINY
from labkit.quantize import Job, quantizing
from labkit.store import Context, Workspace
from labkit.tiny import WEIGHTS

Architecture = Literal["llama", "qwen2", "qwen3", "granite", "mistral", "gemma", "opt"]
HEAD_DIM = 32


@functools.cache
def small_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """The embedded model's tokenizer."""
    return transformers.PreTrainedTokenizerFast.from_pretrained(WEIGHTS)


def make_context(folder: Path, **engine: Any) -> Context:
    """What an engine is started with: the tiny profile with these fields of its engine, offline, all in `folder`."""
    profile = replace(TINY, engine=replace(TINY.engine, **engine))
    return Context(Workspace(folder / "workspace"), profile, logs=folder / "logs")


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
    made = transformers.AutoConfig.for_model(architecture, **(fields | config))
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    model.generation_config.do_sample = False
    model.save_pretrained(folder, **({"max_shard_size": shard_size} if shard_size else {}))
    tokenizer.save_pretrained(folder)
    return folder


def rtn(scheme: str) -> Any:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])


def gptq(dampening_frac: float = 0.1) -> Any:
    from llmcompressor.modifiers.gptq import GPTQModifier

    linear = {"targets": "Linear", "ignore": ["lm_head"], "scheme": "W8A8"}
    return GPTQModifier(actorder=None, dampening_frac=dampening_frac, **linear)


def compress(job: Job, recipe: Any, rows: CalibrationSet | None = None) -> Any:
    """The model that the real oneshot made and saved in the block of `job`."""
    from llmcompressor import oneshot

    data: dict[str, Any] = {}
    if rows:
        count = len(rows.input_ids)
        data = {"dataset": rows.dataset(), "max_seq_length": 256, "num_calibration_samples": count}
    model = job.load()
    oneshot(model=model, recipe=recipe, **data)
    job.save(model, rows)
    return model


def quantized(final: Path, base: Path, recipe: Any, rows: CalibrationSet | None = None) -> Path:
    """The folder `final`, with the checkpoint that the real oneshot makes of `base`."""
    with quantizing(final, base, log=final.parent / "quantize.log") as job:
        compress(job, recipe, rows)
    return final
