"""What a fork server has of vLLM, and how its forks differ from processes that have imported vLLM themselves.

Loaded by its path, as forkserver.py is run: the interpreter may have no labkit.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import random
import sys
from typing import Any

# What a fork server imports: the entrances of vLLM and of lm-eval, and what vLLM imports late, when an engine starts.
PRELOADED = (
    "vllm.entrypoints.llm",
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.openai.api_server",
    "vllm.benchmarks.serve",
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "lm_eval.tasks",
    "lm_eval.models.vllm_causallms",
    "lm_eval.models.huggingface",
    "datasets",
)


def preload() -> None:
    """Imports what engines need. What is missing or broken is left for the fork that needs it to tell."""
    for name in PRELOADED:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # forks share these pages as long as nobody writes to them, and looking for garbage does


def _fork_engine_cores() -> None:
    """A server forks its engine core, as vLLM does it on a GPU; the CPU platform asks for a new process instead, which
    imports everything again. One that is split over several workers still gets new ones: it forks beside its threads.
    """
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config

    def check_and_fork(_: type, config: Any) -> None:
        check(config)
        if config.parallel_config.world_size == 1:
            os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"

    CpuPlatform.check_and_update_config = classmethod(check_and_fork)  # type: ignore[assignment, method-assign]


def _inspect_models_here() -> None:
    """Has vLLM look at a model's class in this process. It starts another one for that, which imports everything again,
    so that no GPU is touched too early; without a GPU there is none.
    """
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda look: look()  # type: ignore[assignment]


def _draw_apart() -> None:
    """What forks draw at random is not the same in all of them. Python's own generator sees to that itself, and torch's
    begins the same in every process.
    """
    import numpy

    numpy.random.seed()
    if datasets := sys.modules.get("datasets.fingerprint"):
        datasets.fingerprint_rng = random.Random()  # type: ignore[attr-defined]  # names files of a shared cache


def _keep_frozen() -> None:
    """Garbage is looked for among a fork's own objects only. When an engine ends vLLM unfreezes everything, and looks
    twice through all that was imported: a second each time, and it copies the pages that forks share.
    """
    gc.freeze = gc.unfreeze = lambda: None


def _compile_nothing_if_told() -> None:
    """What `TORCHDYNAMO_DISABLE=1` does when it is there before torch is imported."""
    if os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        import torch._dynamo

        torch._dynamo.config.disable = True


def settle_in() -> None:
    """What each fork does before it becomes an engine."""
    _draw_apart()
    _keep_frozen()
    _compile_nothing_if_told()
    _fork_engine_cores()
    _inspect_models_here()
