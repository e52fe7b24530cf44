"""What llm-compressor's log says of GPTQ: the layers that it worked on, and those that it gave up."""

from __future__ import annotations

import re
from collections.abc import Sequence

from labkit.errors import CheckpointError

# llmcompressor 0.14, modifiers/gptq/base.py: the warning names at most ten layers, the debug message all of them.
FALLBACK = re.compile(r"Hessian inversion failed for .*Affected modules: (.+)", re.DOTALL)
ALL_FALLBACKS = re.compile(r"round-to-nearest due to hessian inversion failure: (.+)", re.DOTALL)
GPTQ_LAYERS = re.compile(r"Quantizing \d+ module\(s\): \[(.*)\]", re.DOTALL)


def fallbacks_in(messages: Sequence[str]) -> tuple[str, ...]:
    """The layers of which llm-compressor's messages say that GPTQ fell back to round-to-nearest.

    Raises CheckpointError if they say that there were some but the names can't be read.
    """
    found: dict[str, None] = {}
    for message in messages:
        if named := ALL_FALLBACKS.search(message) or FALLBACK.search(message):
            found |= dict.fromkeys(re.split(r",\s*(?:and )?", re.sub(r",\s*and \d+ more \(.*", "", named.group(1))))
        elif "hessian inversion fail" in message.lower():
            raise CheckpointError(
                f"GPTQ fell back to round-to-nearest, and this labkit can't read where: {message}",
                why="the result would be reported as GPTQ",
                fix="use the llmcompressor of the lock",
            )
    return tuple(name for name in found if name)


def gptq_layers_in(messages: Sequence[str]) -> tuple[str, ...]:
    """The layers that llm-compressor's messages say GPTQ worked on."""
    named = [match.group(1) for message in messages if (match := GPTQ_LAYERS.search(message))]
    return tuple(dict.fromkeys(name.strip("'\" ") for names in named for name in names.split(",")))
