"""How an engine is started where it serves or is timed: vLLM's options, and the environment that makes it quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labkit import hardware
from labkit.profiles import Engine

# A step is hundreds of short parallel pieces, and waking a sleeping thread takes longer than many of them: one request
# at a time waited 66 ms for each token of a 24-layer 0.4B model with passive threads, and waits 24 ms so. After that
# many looks a thread sleeps, so that other programs get its core back.
SPIN_BRIEFLY = {"GOMP_SPINCOUNT": "300000"}
# vLLM 0.32's CPU build saves what it compiled ahead of time and can't load it ("'function' object has no attribute
# 'finalize_loading'"): it compiles again at each start. torch's own cache works, and makes a second start shorter.
NO_AOT = {"VLLM_USE_AOT_COMPILE": "0"}


def quick_env(cache: Path | None) -> dict[str, str]:
    """What an engine is started with, beside `labkit.engine.engine_env`, to serve or to be timed.

    cache: where vLLM keeps what it compiles, for the next start (torch's part of it would lie in the temporary folder).
    """
    env = {"VLLM_CACHE_ROOT": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")} if cache else {}
    return env | (SPIN_BRIEFLY | NO_AOT if hardware.engine_build() == "cpu" else {})


def llm_options(engine: Engine, context: int) -> dict[str, Any]:
    """What `vllm.LLM` is given beside a checkpoint. context: tokens, what `labkit.engine.model_length` says of it."""
    options = {"max_model_len": context, "dtype": engine.dtype, "enforce_eager": engine.enforce_eager}
    if hardware.engine_build() == "cuda":
        options["gpu_memory_utilization"] = engine.gpu_memory_utilization
    if engine.tensor_parallel > 1:
        options["tensor_parallel_size"] = engine.tensor_parallel
    return options
