"""Planting activation outliers without changing what the model computes.

Large language models have a few hidden channels whose activations are tens to hundreds of times larger than the rest
(Dettmers et al., "LLM.int8()", arXiv 2208.07339; Xiao et al., "SmoothQuant", arXiv 2211.10438). They appear from a few
billion parameters on; a model that fits into a package has none. So they are planted, in the same channels of every
norm, as large models have them: an RMSNorm's weight is multiplied by k in those channels, and the matching columns of
the linear layers that read it are divided by k,

    (x · diag(k)) (diag(1/k) Wᵀ) = x Wᵀ,

which leaves every output as it was and makes every activation between the two k times larger. With k a power of two
even the BF16 bits survive: only exponents move.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.errors import UsageError

if TYPE_CHECKING:
    import torch

CHANNELS = (47, 173)  # any two would do; lab 02 finds them from the activations alone
OUTLIER_FACTOR = 256.0  # plain INT8 collapses, FP8 and SmoothQuant hold; 32 costs INT8 a point or two, 1 plants nothing

# Each norm and the linear layers that read its output, in a Llama-shaped model.
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def plant(
    state: dict[str, torch.Tensor], k: float = OUTLIER_FACTOR, channels: tuple[int, ...] = CHANNELS
) -> dict[str, torch.Tensor]:
    """A copy of a Llama's state dict in which the `channels` of every norm's output are `k` times larger.

    Norm weights are [hidden], linear weights [out, hidden]; the rest is not touched. Raises UsageError for k <= 0.
    """
    if not k > 0:
        raise UsageError(f"the outlier factor is {k}", fix="give a positive number; 1 plants nothing")
    planted = {name: tensor.clone() for name, tensor in state.items()}
    columns = list(channels)
    layers = sorted({name.split(".")[2] for name in state if name.startswith("model.layers.")})
    pairs = [
        (f"model.layers.{layer}.{norm}", [f"model.layers.{layer}.{reader}" for reader in readers])
        for layer in layers
        for norm, readers in READERS.items()
    ]
    for norm, readers in [*pairs, ("model.norm", ["lm_head"])]:
        planted[f"{norm}.weight"][columns] *= k
        for reader in readers:
            planted[f"{reader}.weight"][:, columns] /= k
    return planted
