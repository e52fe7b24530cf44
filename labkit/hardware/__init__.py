"""What this machine is (`machine`) and what each scheme meets on it (`table` and `capability`); its rates, measured."""

from labkit.hardware.capability import Capability, capability, judge, require
from labkit.hardware.compiler import compile_lacks
from labkit.hardware.machine import Build, Gpu, Machine, engine_build, stack_versions, this_machine
from labkit.hardware.rates import Rates, measure_rates
from labkit.hardware.table import HARDWARE, SCHEMES, TABLE, Verdict

__all__ = [
    "HARDWARE",
    "SCHEMES",
    "TABLE",
    "Build",
    "Capability",
    "Gpu",
    "Machine",
    "Rates",
    "Verdict",
    "capability",
    "compile_lacks",
    "engine_build",
    "judge",
    "measure_rates",
    "require",
    "stack_versions",
    "this_machine",
]
