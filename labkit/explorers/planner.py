"""What fits: a model, a scheme, a load and a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from labkit import figures, memory
from labkit.errors import UsageError
from labkit.explorers.explorer import Choice, Explorer, Slider
from labkit.memory.config import Config
from labkit.memory.predict import Scheme

GPUS = {"T4": 16, "L4, A10": 24, "L40S": 48, "A100, H100": 80, "H200": 141, "MI300X": 192}  # GB, by their data sheets
USABLE = 0.92  # of a GPU's memory that vLLM takes unless told otherwise
PROMPT_TOKENS = 8192  # that an engine puts through at once; longer prompts go in pieces
SCHEMES = get_args(Scheme)


def memory_planner(models: Mapping[str, Config], here: float = 0.0) -> Explorer:
    """Weights, KV cache and activations of a model under a scheme, against the memory of a GPU.

    models: configs by name. here: this machine's GPU memory in GB, which becomes a choice of its own; 0 for none.
    """
    if not models:
        raise UsageError("no model to plan for", fix="give at least one config")
    gpus = {**GPUS, **({f"this machine ({here:.0f} GB)": here} if here else {})}

    def draw(model: str, scheme: Scheme, cache: str, batch: float, sequence: float, gpu: str) -> figures.Figure:
        config, value_bytes = models[model], 1 if cache == "fp8" else 2
        tokens, requests = int(sequence), int(batch)
        parts = memory.activation_parts(config, 1, min(tokens, PROMPT_TOKENS))
        working = max(parts.attention, parts.mlp)  # an engine computes the logits of last positions only
        wanted = memory.kv_cache_bytes(config, requests, tokens, value_bytes)
        weights = {each: memory.weight_bytes(config, each).total for each in SCHEMES}
        usable = USABLE * gpus[gpu] * 1e9
        room = usable - weights[scheme] - working
        held = int(room // memory.kv_cache_bytes(config, 1, tokens, value_bytes)) if room > 0 else 0
        if room <= 0:
            count = memory.gpus_needed(weights[scheme] + working, usable)
            verdict = f"does not fit; {count} such GPUs would hold the weights"
        elif held < requests:
            verdict = f"fits, with a cache for {held:,} such requests at once; the others wait"
        else:
            verdict = f"fits, with a cache for {held:,} such requests at once"
        return figures.memory_bars(
            {each: (size / 1e9, wanted / 1e9, working / 1e9) for each, size in weights.items()},
            scheme,
            usable / 1e9,
            f"{model} in {scheme} on {gpu} ({usable / 1e9:.1f} GB usable): {weights[scheme] / 1e9:.2f} GB of weights, "
            f"{wanted / 1e9:.2f} GB of {cache} KV cache for {requests:,} requests of {tokens:,} tokens, "
            f"{working / 1e9:.2f} GB of activations. It {verdict}.",
        )

    controls: dict[str, Slider | Choice] = {
        "model": Choice("model", tuple(models), next(iter(models))),
        "scheme": Choice("scheme", SCHEMES, "int8-w8a8"),
        "cache": Choice("KV cache", ("bf16", "fp8"), "bf16"),
        "batch": Slider("requests at once", 0, 10, 1, 5, power=True),
        "sequence": Slider("tokens of each", 7, 17, 1, 12, power=True),
        "gpu": Choice("GPU", tuple(gpus), tuple(gpus)[-1] if here else "L4, A10"),
    }
    return Explorer(controls, draw)
