"""The labs' recipes by the name of their variant, for what quantizes without a notebook.

A notebook shows its recipe where a learner reads it. A test holds the two together, by what the manifests of the labs'
checkpoints say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from labkit.errors import UsageError
from labkit.profiles import Profile


@dataclass(frozen=True)
class Recipe:
    """scheme: llm-compressor's preset. rows: calibration rows at most; 0 if none are read, None for the profile's.

    smooths, gptq: whether SmoothQuant comes first, and whether GPTQ rounds; without, each weight goes to the nearest.
    """

    scheme: str
    rows: int | None = 0
    smooths: bool = False
    gptq: bool = False

    def rows_of(self, profile: Profile) -> int:
        """How many calibration rows it reads; 0 for none."""
        return profile.calibration.rows if self.rows is None else min(self.rows, profile.calibration.rows)

    def modifiers(self, profile: Profile) -> list[Any]:
        """What `oneshot(recipe=...)` takes."""
        from llmcompressor.modifiers.gptq import GPTQModifier
        from llmcompressor.modifiers.quantization import QuantizationModifier
        from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

        where: dict[str, Any] = {"targets": "Linear", "scheme": self.scheme, "ignore": ["lm_head"]}
        smoothing = [SmoothQuantModifier(smoothing_strength=profile.smoothing_strength)] if self.smooths else []
        if self.gptq:
            return [*smoothing, GPTQModifier(**where, dampening_frac=profile.dampening_frac, actorder=None)]
        return [*smoothing, QuantizationModifier(**where)]


RECIPES = {
    "fp8-dynamic": Recipe("FP8_DYNAMIC"),
    "fp8-static": Recipe("FP8", rows=128),
    "int8-rtn": Recipe("W8A8"),
    "int8-gptq": Recipe("W8A8", rows=None, gptq=True),
    "int8-smoothquant-gptq": Recipe("W8A8", rows=None, smooths=True, gptq=True),
    "w4a16-gptq": Recipe("W4A16", rows=None, gptq=True),
    "mxfp4a16": Recipe("MXFP4A16"),
    "nvfp4a16": Recipe("NVFP4A16"),
    "mxfp4": Recipe("MXFP4"),
    "nvfp4": Recipe("NVFP4", rows=64),
}


def recipe_of(variant: str) -> Recipe:
    """The recipe of a variant; raises UsageError naming those there are."""
    if variant not in RECIPES:
        raise UsageError(f"there is no recipe {variant!r}", fix=f"choose one of: {', '.join(RECIPES)}")
    return RECIPES[variant]
