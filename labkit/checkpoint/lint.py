"""Whether the serving stack will accept a checkpoint, told before an engine is started (which takes a minute to fail).

The rules are those of vLLM 0.32 (`model_executor/layers/quantization/compressed_tensors`, `v1/attention/backends`) and
of the compressed-tensors releases that older servers have; what a scheme meets on a machine is the capability matrix's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from labkit.checkpoint.inspect import Inspection, Layer, inspect
from labkit.checkpoint.schemes import Claim, read_claims
from labkit.errors import CheckpointError
from labkit.hardware import SCHEMES, capability, engine_build
from labkit.modelfolder import read_config, refuse_unsafe

if TYPE_CHECKING:
    from labkit.hardware import Build, Machine

Level = Literal["error", "warning"]

FORMATS = (
    *("int-quantized", "float-quantized", "naive-quantized", "pack-quantized", "mixed-precision"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"),
)
CPU_HEAD_SIZES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # cpu_attn.py; 48 is not listed, but runs
REMOVED_ORDERINGS = ("group", "dynamic")  # compressed-tensors 0.19 and vLLM 0.32 refuse them
PACKED_MULTIPLE = 32  # widths that the CPU's W4A16 kernel takes
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Finding:
    """error: it will not load, or will compute something else. warning: it loads, and something is worth knowing."""

    level: Level
    what: str
    fix: str


def lint(
    folder: Path, build: Build | None = None, *, machine: Machine | None = None, max_model_len: int = 0
) -> list[Finding]:
    """What an engine build (default: the installed one) on a machine (default: this one) makes of a checkpoint.

    max_model_len: tokens that the engine will be started for; 0 leaves that out. Errors come first. An empty list says
    that nothing speaks against it; a folder that is no checkpoint at all is one finding, not an exception.
    """
    build = build or engine_build()
    try:
        refuse_unsafe(folder)
        config, found = read_config(folder), inspect(folder)
    except CheckpointError as error:
        return [Finding("error", error.what, error.fix)]
    claims = read_claims(config)
    findings = [
        *_whole(found),
        *_method(config, claims),
        *_orderings(claims),
        *_head(config, found),
        *_hardware(found, build, machine),
        *_sizes(config, found, build),
        *_positions(config, max_model_len),
        *_tokenizer(folder),
    ]
    return sorted(findings, key=lambda finding: finding.level != "error")


def _whole(found: Inspection) -> Iterator[Finding]:
    if found.mismatches:
        more = f" (and {len(found.mismatches) - 1} more)" if len(found.mismatches) > 1 else ""
        fix = "quantize and save it again, with save_compressed=True; do not edit config.json"
        yield Finding("error", f"config and tensors disagree: {found.mismatches[0]}{more}", fix)


def _method(config: dict[str, Any], claims: list[Claim]) -> Iterator[Finding]:
    quantization = config.get("quantization_config")
    if not quantization:
        return
    method = quantization.get("quant_method")
    if method != "compressed-tensors":
        yield Finding("warning", f"quant_method is {method!r}, which labkit does not judge", "see vLLM's documentation")
        return
    for name in sorted({claim.format for claim in claims}):
        if name == "dense":
            fix = "save again with save_compressed=True"
            yield Finding("error", "the format is 'dense': quantized values stored as BF16, so nothing is smaller", fix)
        elif name not in FORMATS:
            yield Finding(
                "error", f"the format is {name!r}, which vLLM does not know", f"use one of {', '.join(FORMATS)}"
            )


def _orderings(claims: list[Claim]) -> Iterator[Finding]:
    for claim in claims:
        order = claim.weights.actorder if claim.weights else ""
        if order in REMOVED_ORDERINGS:
            fix = 'quantize again with GPTQModifier(actorder=None) or "static"'
            yield Finding("error", f"the activation ordering is {order!r}, which vLLM no longer loads", fix)
        elif order and claim.weights and claim.weights.strategy == "channel":
            yield Finding(
                "warning",
                f"the activation ordering is {order!r} on channel-wise weights: this vLLM loads it, servers with an "
                "older compressed-tensors refuse it",
                "quantize again with GPTQModifier(actorder=None); with one scale a channel nothing is lost",
            )


def _head(config: dict[str, Any], found: Inspection) -> Iterator[Finding]:
    head = next((layer for layer in found.layers if layer.name.rsplit(".", 1)[-1] == "lm_head"), None)
    quantization = config.get("quantization_config") or {}
    if head and head.weights:
        if not any("lm_head" in target for claim in read_claims(config) for target in claim.targets):
            yield Finding(
                "error",
                "lm_head is quantized, and no target names it: to vLLM it is no Linear layer: its scales fit nowhere",
                'put ignore=["lm_head"] into the recipe, or name it: targets=["Linear", "re:.*lm_head"]',
            )
        yield Finding(
            "warning",
            f"lm_head is quantized ({head.weights}): every token's probabilities pass through it",
            'put ignore=["lm_head"] into the recipe, unless its bytes matter more (lab 01 measures both)',
        )
    elif found.tied and quantization and not any("lm_head" in name for name in quantization.get("ignore") or ()):
        yield Finding(
            "warning",
            "lm_head shares the embeddings' weights and is not in the list of layers to ignore",
            'put ignore=["lm_head"] into the recipe: some servers look for its scales otherwise',
        )


def _hardware(found: Inspection, build: Build, machine: Machine | None) -> Iterator[Finding]:
    schemes = {layer.scheme for layer in found.layers if layer.weights} or {"bf16"}
    if found.kv_cache == "fp8":
        schemes.add("fp8-kv-cache")
    for scheme in sorted(schemes):
        if scheme not in SCHEMES:
            fix = "try it with vLLM, or choose a scheme that `labkit doctor` lists"
            yield Finding("warning", f"the scheme {scheme} is not in the capability matrix", fix)
            continue
        answer = capability(scheme, machine, build)
        if answer.verdict == "no":
            yield Finding("error", f"{scheme} does not run here: {answer.reason}", answer.alternative)
        elif answer.verdict in ("emulated", "weights-only"):
            yield Finding("warning", f"{scheme} runs here, {answer.verdict}: {answer.reason}", answer.alternative)
        elif answer.verdict == "not covered":
            yield Finding("warning", f"{scheme}: {answer.reason}", answer.alternative)


def head_size(config: dict[str, Any]) -> int:
    """The width of one attention head; 0 if the config does not say."""
    heads = int(config.get("num_attention_heads") or 0)
    return int(config.get("head_dim") or (int(config.get("hidden_size") or 0) // heads if heads else 0))


def _sizes(config: dict[str, Any], found: Inspection, build: Build) -> Iterator[Finding]:
    size = head_size(config)
    if build == "cpu" and size and size not in CPU_HEAD_SIZES:
        known = ", ".join(map(str, CPU_HEAD_SIZES))
        yield Finding("error", f"attention heads of {size} channels have no kernel on a CPU ({known} do)", "use a GPU")
    if build == "cpu" and found.kv_cache == "fp8" and size % 32:
        yield Finding(
            "error", f"an FP8 KV cache on a CPU needs heads of a multiple of 32 channels, not {size}", "use BF16"
        )
    for layer in found.layers:
        if problem := _width_problem(layer, build):
            yield Finding("error", f"{layer.name}: {problem}", "choose another group size, or ignore this layer")
            return  # the other layers have the same widths; one finding says it


def _width_problem(layer: Layer, build: Build) -> str:
    if layer.weights is None:
        return ""
    rows, columns = layer.shape
    group = layer.weights.group_size
    if group and columns % group:
        return f"groups of {group} do not divide its {columns} columns"
    if build == "cpu" and layer.weights.bits == 4 and (rows % PACKED_MULTIPLE or columns % PACKED_MULTIPLE):
        return f"{rows} × {columns} is no multiple of {PACKED_MULTIPLE}, which the CPU's 4-bit kernel needs"
    return ""


def _positions(config: dict[str, Any], max_model_len: int) -> Iterator[Finding]:
    positions = int(config.get("max_position_embeddings") or 0)
    if max_model_len and positions and max_model_len > positions:
        yield Finding(
            "error",
            f"the engine is to serve {max_model_len:,} tokens, and the model was made for {positions:,}",
            f"start it with max_model_len={positions} or less",
        )


def _tokenizer(folder: Path) -> Iterator[Finding]:
    if not any((folder / name).is_file() for name in TOKENIZERS):
        yield Finding("error", "there is no tokenizer beside the weights", "save the base model's tokenizer with it")
        return
    inside = folder / "tokenizer_config.json"
    if not (folder / "chat_template.jinja").is_file() and not (
        inside.is_file() and '"chat_template"' in inside.read_text(encoding="utf-8")
    ):
        yield Finding(
            "warning",
            "there is no chat template: the chat endpoint and chat evaluations will refuse it",
            "fine for a base model; for an instruct model, save its tokenizer again",
        )
