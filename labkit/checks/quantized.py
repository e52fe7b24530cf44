"""Of a quantized checkpoint: its layers, bytes and values, how it was made, whether a server takes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from labkit.checks.judging import Check, invariant

if TYPE_CHECKING:
    from labkit.checkpoint import Finding

MEMORY_SLACK_BYTES = 300_000_000  # what a process may keep of a quantize: caches of libraries, not weights
PREDICTED_BYTES_TOLERANCE = 0.01


def layers_have_scheme(schemes: Mapping[str, str], wanted: str) -> Check:
    """Every quantized layer has the scheme that was asked for. `schemes`: layer to scheme, "bf16" if it has none."""
    wrong = {name: scheme for name, scheme in schemes.items() if scheme != wanted and not name.endswith("lm_head")}
    right = sum(scheme == wanted for scheme in schemes.values())
    example = next(iter(wrong.items()), None)
    return invariant(
        right > 0 and not wrong,
        "the scheme of every linear layer in the saved files",
        f"{right} layers are {wanted}" + (f", but {example[0]} is {example[1]}" if example else ""),
        "compare the recipe's `targets` and `ignore` with the model's layer names",
    )


def bytes_as_predicted(
    measured: int,
    predicted: int,
    looked_at: str = "the bytes of all tensors on disk against the prediction from config.json",
) -> Check:
    """The checkpoint's bytes are what the arithmetic says, within 1%."""
    off = abs(measured - predicted) / predicted
    return invariant(
        off <= PREDICTED_BYTES_TOLERANCE,
        looked_at,
        f"{measured:,} bytes against {predicted:,} ({off:.2%} apart)",
        "look at which group of tensors differs: embeddings, lm_head, weights or scales",
    )


def values_are_finite(bad: Sequence[str]) -> Check:
    """No tensor of the checkpoint holds NaN or infinity. `bad`: names of those that do."""
    return invariant(
        not bad,
        "every value of every tensor",
        "all are finite" if not bad else f"NaN or infinity in {', '.join(bad[:3])}",
        "a scale was zero or overflowed: quantize again, in BF16 or float32, and look at the calibration rows",
    )


def reload_is_equal(difference: float, tolerance: float = 0.05) -> Check:
    """The saved checkpoint, loaded again, computes what the model in memory computed.

    difference: mean |logits − logits'| over mean |logits|.
    """
    return invariant(
        difference <= tolerance,
        "the logits of the model in memory against those of the checkpoint loaded again",
        f"they differ by {difference:.3%} of their size (at most {tolerance:.0%} is rounding)",
        "the files are not what was in memory: delete the checkpoint and quantize again",
    )


def same_tensors(different: Sequence[str], looked_at: str) -> Check:
    """Two checkpoints hold the same tensors, bit for bit. `different`: what `checkpoint.different_tensors` returned."""
    more = f" and {len(different) - 3} more" if len(different) > 3 else ""
    return invariant(
        not different,
        looked_at,
        "they are the same, bit for bit" if not different else f"they differ in {', '.join(different[:3])}{more}",
        "compare what the two ways were told to leave alone (`ignore`)",
    )


def cache_is_calibrated(scales: Mapping[str, float], layers: int) -> Check:
    """Every layer has a scale for keys and one for values, each a number above zero."""
    bad = [name for name, scale in scales.items() if not (math.isfinite(scale) and scale > 0)]
    return invariant(
        len(scales) == 2 * layers > 0 and not bad,
        "the scales of the KV cache in the saved files",
        f"{len(scales)} scales for {layers} layers" + (f", of which {', '.join(bad[:3])} can't be" if bad else ""),
        "calibrate with rows (`dataset=`) and a kv_cache_scheme in the recipe",
    )


def gptq_ran(fallbacks: Sequence[str], worked_on: Sequence[str], quantized: int) -> Check:
    """GPTQ worked on every quantized layer, fell back nowhere. quantized: how many layers are quantized."""
    return invariant(
        not fallbacks and len(worked_on) == quantized > 0,
        "llm-compressor's log, layer by layer",
        f"GPTQ worked on {len(worked_on)} of {quantized} quantized layers and fell back in {len(fallbacks)}",
        "raise `dampening_frac` (0.1 helps most models) or give more calibration rows",
    )


def memory_came_back(before_bytes: int, after_bytes: int) -> Check:
    """After the release the process (or device) holds about what it held before the quantize."""
    return invariant(
        after_bytes - before_bytes <= MEMORY_SLACK_BYTES,
        "memory before the model was loaded against memory after it was released",
        f"{before_bytes / 1e6:,.0f} MB before, {after_bytes / 1e6:,.0f} MB after",
        "something still holds the model: a variable of your own, or an output (Out[...]) of a cell",
    )


def server_accepts(findings: Sequence[Finding]) -> Check:
    """The linter found nothing that vLLM would refuse. `findings`: what `checkpoint.lint` returned."""
    errors = [finding for finding in findings if finding.level == "error"]
    return invariant(
        not errors,
        "the checkpoint against what this machine's vLLM accepts",
        "it will load" if not errors else "; ".join(error.what for error in errors),
        errors[0].fix if errors else "",
    )
