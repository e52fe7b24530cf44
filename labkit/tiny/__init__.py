"""The embedded model, its outliers, and the random model that the labs measure speed with.

The embedded model is a small Llama that this project trained (`tools/train_tiny.py`) on text that it generates
(`corpus`). Large language models have a few hidden channels whose activations are tens to hundreds of times larger than
the rest (Dettmers et al., "LLM.int8()", arXiv 2208.07339; Xiao et al., "SmoothQuant", arXiv 2211.10438). They appear
from a few billion parameters on; a model that fits into a package has none. So they are planted, in the same channels
of every norm, as large models have them: an RMSNorm's weight is multiplied by k in those channels, and the matching
columns of the linear layers that read it are divided by k,

    (x · diag(k)) (diag(1/k) Wᵀ) = x Wᵀ,

which leaves every output as it was and makes every activation between the two k times larger. With k a power of two
even the BF16 bits survive: only exponents move.

The speed model has random weights: how long a matrix product takes does not depend on the numbers in it, and nobody
reads its answers. The embedded model is too small for speed: its layers take microseconds, and what is measured then is
everything around them. For the same reason the speed model has two wide layers and not 24 of a quarter of the width.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import CheckpointError, UsageError
from labkit.files import file_sha256

if TYPE_CHECKING:
    import torch

WEIGHTS = Path(__file__).parent / "weights"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SPEED_SEED = 0
CHANNELS = (47, 173)  # any two would do; lab 02 finds them from the activations alone
OUTLIER_FACTOR = 256.0  # plain INT8 collapses, FP8 and SmoothQuant hold; 32 costs INT8 a point or two, 1 plants nothing
READERS = {  # each norm of a Llama's layer, and the linear layers that read its output
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}


def embedded_manifest(weights: Path = WEIGHTS) -> dict[str, Any]:
    """How the packaged weights were made and what they scored, after every file was compared with its SHA-256."""
    manifest: dict[str, Any] = json.loads((weights / "manifest.json").read_text())
    for name, expected in manifest["files"].items():
        path = weights / name
        if not path.is_file() or file_sha256(path) != expected:
            raise CheckpointError(
                f"{path} is missing or not the file that was trained",
                why="the package is damaged, and every result of it would be wrong",
                fix="install labkit again, or restore the file: git checkout labkit/tiny/weights",
            )
    return manifest


def materialize(folder: Path, k: float = OUTLIER_FACTOR, weights: Path = WEIGHTS) -> None:
    """Writes the embedded model with planted outliers into `folder`, as an ordinary BF16 checkpoint."""
    from safetensors.torch import load_file, save_file

    for name in embedded_manifest(weights)["files"]:
        if name != "model.safetensors":
            shutil.copyfile(weights / name, folder / name)
    planted = plant(load_file(weights / "model.safetensors"), k)
    save_file(planted, folder / "model.safetensors", metadata={"format": "pt"})


def plant(state: dict[str, torch.Tensor], k: float = OUTLIER_FACTOR) -> dict[str, torch.Tensor]:
    """A copy of a Llama's state dict in which `CHANNELS` of every norm's output are `k` times larger.

    Norm weights are [hidden], linear weights [out, hidden]; the rest is not touched. Raises UsageError for k <= 0.
    """
    if not k > 0:
        raise UsageError(f"the outlier factor is {k}", fix="give a positive number; 1 plants nothing")
    planted, channels = {name: tensor.clone() for name, tensor in state.items()}, list(CHANNELS)
    readers: dict[str, tuple[str, ...]] = {"model.norm": ("lm_head",)}
    for layer in {name.partition(".input_layernorm")[0] for name in state if ".input_layernorm" in name}:
        readers |= {f"{layer}.{norm}": tuple(f"{layer}.{name}" for name in names) for norm, names in READERS.items()}
    for norm, names in readers.items():
        planted[f"{norm}.weight"][channels] *= k
        for name in names:
            planted[f"{name}.weight"][:, channels] /= k
    return planted


def materialize_speed_model(folder: Path) -> None:
    """Writes the speed model into `folder`: a BF16 checkpoint of 409 million parameters, the embedded tokenizer."""
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
