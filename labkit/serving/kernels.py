"""One linear layer as the CPU engine runs it: what it takes in BF16 and in INT8, and what of that is rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit import hardware
from labkit.engine import run_script
from labkit.errors import Unsupported
from labkit.profiles import Engine
from labkit.serving.silence import Silence

CHILD = Path(__file__).with_name("kernel_child.py")


@dataclass(frozen=True)
class KernelTime:
    """Median milliseconds of one layer for so many tokens in a step.

    int8_ms has the rounding of the layer's input in it. rounding_ms: that by itself; None where the engine's kernel
    rounds and multiplies in one, as the one for processors with AMX does.
    """

    tokens: int
    bf16_ms: float
    int8_ms: float
    rounding_ms: float | None

    @property
    def gain(self) -> float:
        """How many times as fast INT8 is."""
        return self.bf16_ms / self.int8_ms


def kernel_times(
    outputs: int, inputs: int, tokens: Sequence[int], *, engine: Engine, log: Path
) -> dict[bool, list[KernelTime]]:
    """Times a layer, [tokens, inputs] × [inputs, outputs], in a child, a second for each number of tokens.

    The kernels are those that the engine would take on this machine, by its own choice.

    It is timed twice. False: as the C library comes, which gives large blocks of memory back as soon as they are freed,
    and takes them anew for each product. True: with freed memory kept, as labkit starts its engines.

    Raises Unsupported where the engine is no CPU build: the kernels of a GPU are others.
    """
    if hardware.engine_build() != "cpu":
        raise Unsupported("the kernels of vLLM's CPU build are not here", fix="use a GPU's own profiler")
    with Silence(log) as silence:
        files = {"ready": str(silence.ready), "go": str(silence.go)}
        found = run_script(
            CHILD.read_text(encoding="utf-8"),
            {"shape": [outputs, inputs], "tokens": list(tokens), **files},
            log=log,
            engine=engine,
            offline=True,
            deadline_seconds=600,
            on_tick=silence.look,
        )
    return {
        keep: [KernelTime(int(count), *times) for count, *times in timed]
        for keep, timed in zip((False, True), found, strict=True)
    }
