"""Bytes of the KV cache and of activations, predicted from a config alone, with the arithmetic that a lab can show."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.memory.config import Config, text_config
from labkit.memory.predict import BF16_BYTES, tensors


@dataclass(frozen=True)
class _Shape:
    """The widths that activations have, per token, in values."""

    layers: int
    hidden: int
    intermediate: int
    query_width: int  # attention heads × head size
    kv_width: int  # KV heads × head size
    vocabulary: int
    head_norms: bool  # q_norm and k_norm, as in Qwen3
    scaled_logits: bool  # logits are scaled or capped after the lm_head, as in Granite and Gemma 2
    window: int | None

    @classmethod
    def of(cls, config: Config) -> _Shape:
        found = text_config(config)
        heads = found.num_attention_heads
        head_size = getattr(found, "head_dim", None) or found.hidden_size // heads
        scaled = ("logits_scaling", "final_logit_softcapping", "logit_scale")
        return cls(
            layers=found.num_hidden_layers,
            hidden=found.hidden_size,
            intermediate=found.intermediate_size,
            query_width=heads * head_size,
            kv_width=(getattr(found, "num_key_value_heads", None) or heads) * head_size,
            vocabulary=found.vocab_size,
            head_norms=any(tensor.module.endswith("q_norm") for tensor in tensors(config)),
            scaled_logits=any(getattr(found, name, None) is not None for name in scaled),
            window=getattr(found, "sliding_window", None),
        )


def kv_cache_bytes(config: Config, batch: int, sequence: int, bytes_per_value: int = BF16_BYTES) -> int:
    """2 (keys and values) × layers × KV heads × head size × batch × sequence × bytes per value; 1 byte for FP8.

    An upper bound for layers with a sliding window, which can drop what lies outside it.
    """
    shape = _Shape.of(config)
    return 2 * shape.layers * shape.kv_width * batch * sequence * bytes_per_value


@dataclass(frozen=True)
class ActivationBytes:
    """What a forward holds in its three fullest moments, in bytes; one after another, so the largest is the peak."""

    attention: int
    mlp: int
    logits: int

    @property
    def peak(self) -> int:
        return max(self.attention, self.mlp, self.logits)

    @property
    def dominant(self) -> str:
        """Which moment is the peak: "attention", "mlp" or "logits"."""
        return max(("attention", "mlp", "logits"), key=lambda name: int(getattr(self, name)))


def activation_parts(config: Config, batch: int, sequence: int, bytes_per_value: int = BF16_BYTES) -> ActivationBytes:
    """The moments of one Hugging Face forward without gradients or cache, for dense models with a gated MLP and SDPA.

    Per token, with hidden H, intermediate I, query width A, KV width K, vocabulary V:

        mlp        4H + 3I    embeddings, layer input, residual, normed input; activated gate, up, and their product
        attention  3H + max(4A + 2K, 2A + 5K)    rotating the queries, then the keys, makes copies of each
        logits     V + H      every position's logits (2V + H where they are scaled or capped afterwards)

    With q_norm, attention has 3H + 5A in 16 bits, as norms compute in FP32. A sliding window shorter than the sequence
    adds a mask of sequence × sequence.
    """
    shape, tokens = _Shape.of(config), batch * sequence
    hidden, query, kv = shape.hidden, shape.query_width, shape.kv_width
    attention = 3 * hidden + max(4 * query + 2 * kv, 2 * query + 5 * kv)
    if shape.head_norms and bytes_per_value < 4:
        attention = max(attention, 3 * hidden + 5 * query)
    mask = sequence**2 if shape.window is not None and sequence > shape.window else 0
    logits = (2 if shape.scaled_logits else 1) * shape.vocabulary + hidden
    return ActivationBytes(
        attention=tokens * attention * bytes_per_value + mask * (2 + batch * bytes_per_value),
        mlp=tokens * (4 * hidden + 3 * shape.intermediate) * bytes_per_value + 2 * mask,
        logits=tokens * logits * bytes_per_value,
    )


def activation_bytes(config: Config, batch: int, sequence: int, bytes_per_value: int = BF16_BYTES) -> int:
    """Peak bytes of activations in one Hugging Face forward: the largest of `activation_parts`.

    Under W8A8 an engine needs as much: activations stay BF16 between the linear layers, and each layer quantizes its
    own input just before it multiplies. (An engine also computes the logits of the last positions only.)
    """
    return activation_parts(config, batch, sequence, bytes_per_value).peak


def claimed_activation_bytes(config: Config, batch: int, sequence: int) -> int:
    """What guides claim for W8A8: half of BF16, as if every activation lived in 8 bits. Compare `activation_bytes`."""
    return activation_bytes(config, batch, sequence) // 2
