"""Recovery against the baseline: paired, with its uncertainty, and a verdict that may be "cannot tell"."""

from labkit.compare.evaluations import compare_evaluations
from labkit.compare.planning import detection_power, samples_to_detect
from labkit.compare.recovery import MARGIN, Recovery, Verdict, compare, mcnemar, samples_needed

__all__ = [
    "MARGIN",
    "Recovery",
    "Verdict",
    "compare",
    "compare_evaluations",
    "detection_power",
    "mcnemar",
    "samples_needed",
    "samples_to_detect",
]
