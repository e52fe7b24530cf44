"""What this machine is (`machine`) and what it can do with each scheme (`capability`)."""

from labkit.hardware.capability import (
    HARDWARE,
    SCHEMES,
    TABLE,
    Capability,
    capability,
    judge,
    require,
)
from labkit.hardware.machine import Build, Gpu, Machine, engine_build, stack_versions, this_machine

__all__ = [
    "HARDWARE",
    "SCHEMES",
    "TABLE",
    "Build",
    "Capability",
    "Gpu",
    "Machine",
    "capability",
    "engine_build",
    "judge",
    "require",
    "stack_versions",
    "this_machine",
]
