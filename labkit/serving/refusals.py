"""What to do when a server does not start or dies: the words of vLLM's log, and the remedy for each."""

from __future__ import annotations

import re
from collections.abc import Sequence

_REMEDIES: tuple[tuple[str, str], ...] = (
    (r"address already in use", "another program took port {port} meanwhile: serve again, it takes another port"),
    (
        r"KV cache (is|memory)|No available memory for the cache blocks|max seq len",
        "give the cache more room (kv_cache_gib on a CPU, gpu_memory_utilization on a GPU) or ask for a smaller "
        "max_model_len",
    ),
    (
        r"out of memory|free memory|cannot allocate|signal 9",
        "close what else holds memory on this machine, or serve a smaller model or scheme",
    ),
    (
        r"static_scaled_fp8_quant|no kernel|Failed to find a kernel|not supported|NotImplementedError|not implemented",
        "this engine build has no kernel for the scheme: `labkit doctor` shows what it serves and what to take instead",
    ),
    (
        r"safetensors|KeyError|not initialized from checkpoint|size mismatch|shape|actorder",
        "the checkpoint is damaged or of another format than vLLM reads: `labkit.checkpoint.lint(folder)` says more",
    ),
    (r"C\+\+ compiler|Python\.h|InductorError|ld returned", "the compiler failed: add --enforce-eager to the options"),
)


def remedy(lines: Sequence[str], port: int) -> str:
    """What to do, by the first of the log's telling lines that says something known."""
    for line in lines:
        for pattern, fix in _REMEDIES:
            if re.search(pattern, line, re.IGNORECASE):
                return fix.format(port=port)
    return "read what the log says; `labkit.checkpoint.lint(folder)` says whether vLLM would take the checkpoint"
