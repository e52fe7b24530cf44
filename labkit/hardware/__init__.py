"""What this machine is (`machine`) and what each scheme meets on it (`table` and `capability`)."""

from labkit.hardware.capability import Capability, capability, judge, require
from labkit.hardware.compiler import compile_lacks
from labkit.hardware.machine import Build, Gpu, Machine, engine_build, stack_versions, this_machine
from labkit.hardware.table import HARDWARE, SCHEMES, TABLE, Verdict

__all__ = [
    "HARDWARE",
    "SCHEMES",
    "TABLE",
    "Build",
    "Capability",
    "Gpu",
    "Machine",
    "Verdict",
    "capability",
    "compile_lacks",
    "engine_build",
    "judge",
    "require",
    "stack_versions",
    "this_machine",
]
