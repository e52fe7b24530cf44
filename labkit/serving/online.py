"""Online quantization: vLLM rounds a BF16 checkpoint while it loads it, if `quantization=` names a scheme it knows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from labkit.engine import model_length, run_script
from labkit.profiles import Engine
from labkit.serving.settings import llm_options

CHILD = Path(__file__).with_name("online_child.py")
# The capability matrix's name of what a dense model becomes; a name that is not here rounds experts only.
SCHEMES = {
    "fp8_per_tensor": "fp8-w8a8-static",
    "fp8_per_channel": "fp8-w8a8-dynamic",
    "fp8_per_block": "fp8-w8a8-block",
    "mxfp8": "mxfp8",
    "mxfp4": "mxfp4",
}
# vLLM 0.32's block-wise kernel for CPUs with AMX takes a bias in FP32 and is handed it in BF16: a model with biases,
# such as Qwen2, is refused with these words, although the engine has the scheme.
BIAS_FAULT = ("fp8_per_block", "expected scalar type Float but found BFloat16")


@dataclass(frozen=True)
class Online:
    """What became of one name: whether the engine took it, the share of linear layers it quantized, its error's words.

    scheme: its row in the capability matrix; "" for a name that is only for experts, or that labkit does not know.
    """

    name: str
    taken: bool
    quantized_share: float
    words: str

    @property
    def scheme(self) -> str:
        return SCHEMES.get(self.name, "")

    @property
    def bias_fault(self) -> bool:
        """Whether it was refused as the engine refuses a scheme that it has for a model with biases (BIAS_FAULT)."""
        return not self.taken and (self.name, self.words.strip()) == BIAS_FAULT


def online_schemes(checkpoint: Path, *, engine: Engine, log: Path, offline: bool = True) -> list[Online]:
    """Tries every name that the installed vLLM has on a BF16 checkpoint, each in a process of its own.

    Raises ProcessFailed if vLLM itself does not start.
    """
    options = llm_options(replace(engine, enforce_eager=True), model_length(checkpoint, engine))
    found = run_script(
        CHILD.read_text(encoding="utf-8"),
        {"model": str(checkpoint), "engine": options},
        log=log,
        engine=engine,
        offline=offline,
        deadline_seconds=3600,
    )
    return [Online(*each) for each in found]
