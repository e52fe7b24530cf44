"""labkit: what the labs call. The names below are the notebooks' whole vocabulary; a test pins them.

Nothing heavy is imported until it is used: `import labkit` takes milliseconds, torch or vLLM many seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit import (
        activations,
        card,
        checkpoint,
        checks,
        evaluation,
        explorers,
        figures,
        hardware,
        memory,
        numerics,
        pipeline,
        publish,
        serving,
        simulation,
        tiny,
        transfer,
        zeroquant,
    )
    from labkit.compare import compare_evaluations
    from labkit.errors import LabError
    from labkit.evaluation import Request
    from labkit.lab import open_lab

_MODULES = (
    "activations",
    "card",
    "checkpoint",
    "checks",
    "evaluation",
    "explorers",
    "figures",
    "hardware",
    "memory",
    "numerics",
    "pipeline",
    "publish",
    "serving",
    "simulation",
    "tiny",
    "transfer",
    "zeroquant",
)
_NAMES = {
    "LabError": "labkit.errors",
    "Request": "labkit.evaluation",
    "compare_evaluations": "labkit.compare",
    "open_lab": "labkit.lab",
}

__all__ = [
    "LabError",
    "Request",
    "activations",
    "card",
    "checkpoint",
    "checks",
    "compare_evaluations",
    "evaluation",
    "explorers",
    "figures",
    "hardware",
    "memory",
    "numerics",
    "open_lab",
    "pipeline",
    "publish",
    "serving",
    "simulation",
    "tiny",
    "transfer",
    "zeroquant",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"labkit.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"labkit has no {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
