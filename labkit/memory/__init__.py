"""Bytes of weights, KV cache and activations: predicted from a config, and measured.

`predict` counts weights, `activations` the KV cache and activations, `measure` what really happens.
"""

from labkit.memory.activations import (
    ActivationBytes,
    activation_bytes,
    activation_parts,
    claimed_activation_bytes,
    kv_cache_bytes,
)
from labkit.memory.config import QWEN_7B, QWEN_72B
from labkit.memory.measure import (
    Peak,
    Released,
    device_bytes,
    measure_forward,
    peak,
    process_bytes,
    release,
    return_free_memory,
)
from labkit.memory.predict import WeightBytes, gpus_needed, weight_bytes
from labkit.memory.trim import trimmed

__all__ = [
    "QWEN_7B",
    "QWEN_72B",
    "ActivationBytes",
    "Peak",
    "Released",
    "WeightBytes",
    "activation_bytes",
    "activation_parts",
    "claimed_activation_bytes",
    "device_bytes",
    "gpus_needed",
    "kv_cache_bytes",
    "measure_forward",
    "peak",
    "process_bytes",
    "release",
    "return_free_memory",
    "trimmed",
    "weight_bytes",
]
