"""labkit: what the labs call. The names below are the notebooks' whole vocabulary; a test pins them.

Nothing heavy is imported until it is used: `import labkit` takes milliseconds, torch or vLLM many seconds.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = (
    *("behaviour", "card", "checkpoint", "errors", "explorers", "figures", "files", "hardware", "measured", "memory"),
    *("numerics", "pipeline", "process", "publish", "serve", "simulation", "transfer", "zeroquant"),
)
_NAMES = {
    "LabError": "labkit.errors",
    "Request": "labkit.evaluate",
    "open_lab": "labkit.lab",
}

__all__ = sorted([*_MODULES, *_NAMES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"labkit.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"labkit has no {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__
