"""What a checkpoint really holds (`inspect`), and whether the serving stack takes it (`lint`).

Inspection reads the headers of the safetensors files and config.json, so a 7B checkpoint is described in well under a
second; only the check of values reads tensors. The linter's rules are those of vLLM 0.32
(`model_executor/layers/quantization/compressed_tensors`, `v1/attention/backends`) and of the compressed-tensors
releases that older servers have: an engine takes a minute to say the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from labkit.checkpoint.folder import TensorInfo, read_config, read_headers, read_tensor, refuse_unsafe
from labkit.errors import CheckpointError
from labkit.hardware import SCHEMES, capability, engine_build

if TYPE_CHECKING:
    import torch

    from labkit.hardware import Build, Machine

PLAIN = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
GROUPED = ("group", "tensor_group")
WEIGHTS = ("weight", "weight_packed")
SCALES = (
    *("weight_scale", "weight_zero_point", "weight_global_scale", "weight_shape", "weight_g_idx"),
    *("input_scale", "input_zero_point", "input_global_scale", "output_scale", "q_scale", "k_scale", "v_scale"),
)
GROUP_SCALES = (*PLAIN, "F8_E4M3", "F8_E8M0", "U8")
STORED = {("int", 8): ("I8", "I32"), ("float", 8): ("F8_E4M3",), ("int", 4): ("I32",), ("float", 4): ("U8",)}
FORMATS = (
    *("int-quantized", "float-quantized", "naive-quantized", "pack-quantized", "mixed-precision"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"),
)
CPU_HEAD_SIZES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)  # cpu_attn.py; 48 is not listed, but runs
REMOVED_ORDERINGS = ("group", "dynamic")  # compressed-tensors 0.19 and vLLM 0.32 refuse them
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


# --- what the config claims -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantization:
    """How one tensor is quantized. kind: `int` or `float`. group_size counts values; 0 where there are no groups."""

    bits: int
    kind: str
    strategy: str  # tensor, channel, token, group, tensor_group, block
    dynamic: bool = False
    group_size: int = 0
    actorder: str = ""

    @staticmethod
    def parse(args: Mapping[str, Any] | None) -> Quantization | None:
        """From compressed-tensors' QuantizationArgs as JSON; None stays None."""
        if not args:
            return None
        form = (int(args.get("num_bits", 8)), str(args.get("type", "int")), str(args.get("strategy") or "tensor"))
        group_size, dynamic = max(0, int(args.get("group_size") or 0)), bool(args.get("dynamic"))
        return Quantization(*form, dynamic, group_size, str(args.get("actorder") or ""))

    def __str__(self) -> str:
        grouped = f" of {self.group_size}" if self.group_size else ""
        return f"{'FP' if self.kind == 'float' else 'INT'}{self.bits} per {self.strategy}{grouped}"


@dataclass(frozen=True)
class Claim:
    """One config group: its targets, and how their weights and input activations are quantized."""

    targets: tuple[str, ...]
    weights: Quantization | None
    activations: Quantization | None
    format: str


def scheme_name(weights: Quantization | None, activations: Quantization | None) -> str:
    """`int8-w8a8`, `w4a16`, ..., as in the capability matrix (`labkit.hardware`); `bf16` for no quantization."""
    if weights is None:
        return "bf16"
    form = (weights.kind, weights.bits)
    inputs = (activations.kind, activations.bits) if activations else None
    if form == ("float", 4):
        name = "mxfp4" if weights.group_size == 32 else "nvfp4"
        return f"{name}a16" if inputs is None else f"{name}afp8" if inputs == ("float", 8) else name
    if form == ("float", 8):
        if inputs != form or activations is None:
            return "fp8-weight-only"
        return "fp8-w8a8-dynamic" if activations.dynamic else "fp8-w8a8-static"
    if inputs is None:
        return f"w{weights.bits}a16"
    if inputs == ("float", 8):
        return f"w{weights.bits}afp8"
    return "int8-w8a8" if form == inputs == ("int", 8) else f"int-w{weights.bits}a{inputs[1]}"


def _read_claims(config: Mapping[str, Any]) -> list[Claim]:
    """The config groups of a compressed-tensors checkpoint; empty for one that is not quantized."""
    quantization = config.get("quantization_config") or {}
    return [
        Claim(
            tuple(group.get("targets", ())),
            Quantization.parse(group.get("weights")),
            Quantization.parse(group.get("input_activations")),
            str(group.get("format") or quantization.get("format") or ""),
        )
        for group in (quantization.get("config_groups") or {}).values()
    ]


def _claim_for(module: str, claims: list[Claim], ignore: list[str]) -> Claim | None:
    """What the config claims about a linear layer: None if it is ignored or no group targets it.

    A pattern is `re:...`, a whole name, or `Linear` for all. A group that names the layer wins over one that names the
    class, as in compressed-tensors.
    """

    def matches(pattern: str) -> bool:
        if pattern.startswith("re:"):
            return re.match(pattern[3:], module) is not None
        return pattern in (module, "Linear")

    if any(map(matches, ignore)):
        return None
    fitting = [(target == "Linear", n) for n, c in enumerate(claims) for target in c.targets if matches(target)]
    return claims[min(fitting)[1]] if fitting else None


# --- what the files hold ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One linear layer: its scheme by tensors and config, its weight's shape [out, in], how that is quantized."""

    name: str
    scheme: str
    shape: tuple[int, int]
    weights: Quantization | None


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    part_bytes: of `embeddings`, `lm_head`, `linear` (weights), `scales` and `other` (norms, biases). parameters: of the
    model that is stored, however few bits each has. kv_cache: the scheme of a quantized KV cache, or "". mismatches:
    where config and tensors disagree, in words. not_finite: tensors with NaN or infinity; None if they were not read.
    """

    layers: tuple[Layer, ...]
    part_bytes: dict[str, int]
    parameters: int
    kv_cache: str
    mismatches: tuple[str, ...]
    not_finite: tuple[str, ...] | None

    @property
    def total_bytes(self) -> int:
        """Of all tensors."""
        return sum(self.part_bytes.values())

    @property
    def schemes(self) -> dict[str, str]:
        """Layer name to scheme; `bf16` where a layer is not quantized."""
        return {layer.name: layer.scheme for layer in self.layers}


def inspect(folder: Path, *, values: bool = False) -> Inspection:
    """Describes a checkpoint; `values` also reads every tensor and looks for NaN and infinity.

    Raises CheckpointError if the folder is no checkpoint or a file of it is cut.
    """
    config, tensors = read_config(folder), read_headers(folder)
    quantization = config.get("quantization_config") or {}
    claims, ignore = _read_claims(config), list(quantization.get("ignore") or ())
    modules = [  # with a matrix that is no embedding table, in the order stored
        name.rpartition(".")[0]
        for name, tensor in tensors.items()
        if name.endswith((".weight", ".weight_packed")) and len(tensor.shape) == 2 and part_of(name) != "embeddings"
    ]
    described = {module: _describe(module, tensors, _claim_for(module, claims, ignore)) for module in modules}
    layers = tuple(layer for layer, _ in described.values())
    mismatches = [complaint for _, complaints in described.values() for complaint in complaints]
    for layer in layers:
        if config.get("tie_word_embeddings") and layer.weights and part_of(f"{layer.name}.weight") == "lm_head":
            mismatches.append(f"{layer.name}: config.json ties it to the embeddings, the file holds its own, quantized")
    if claims and not any(layer.weights for layer in layers):
        mismatches.append("config.json says that the model is quantized, and no layer is")
    part_bytes = dict.fromkeys(("embeddings", "lm_head", "linear", "scales", "other"), 0)
    parameters = sum(math.prod(layer.shape) for layer in layers)
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        part = part_of(name)
        if kind == "weight_scale" and not {f"{module}.{weight}" for weight in WEIGHTS} & tensors.keys():
            mismatches.append(f"{module}: the file holds its scales and no weight")
        if part == "embeddings" and f"{name}_scale" in tensors:
            mismatches.append(f"{name}: embeddings are quantized, and engines read only linear layers so")
        if part == "linear" and (module not in described or kind not in WEIGHTS):
            part = "other"
        part_bytes[part] += tensor.bytes
        parameters += math.prod(tensor.shape) if part in ("embeddings", "other") else 0
    cache = Quantization.parse(quantization.get("kv_cache_scheme"))
    return Inspection(
        layers,
        part_bytes,
        parameters,
        kv_cache=f"{'fp' if cache.kind == 'float' else 'int'}{cache.bits}" if cache else "",
        mismatches=tuple(mismatches),
        not_finite=not_finite(tensors.values()) if values else None,
    )


def part_of(tensor: str) -> str:
    """The part of the model that a tensor belongs to, by its name: `linear` is any other weight, a norm's as well."""
    module, _, kind = tensor.rpartition(".")
    last = module.rsplit(".", 1)[-1]
    if kind in SCALES:
        return "scales"
    if last == "lm_head":
        return "lm_head"
    return "embeddings" if "embed" in last or last in ("wte", "wpe") else "linear"


def _describe(module: str, tensors: Mapping[str, TensorInfo], claim: Claim | None) -> tuple[Layer, list[str]]:
    """One layer as its tensors and the config say, and where these two disagree."""
    own = {kind: tensors[f"{module}.{kind}"] for kind in (*WEIGHTS, *SCALES) if f"{module}.{kind}" in tensors}
    weight, claimed = next(iter(own.values())), claim.weights if claim else None
    packed = {"I32": 32, "U8": 8}.get(weight.dtype, 0) // claimed.bits if claimed else 0  # weights in a stored number
    shape = (weight.shape[0], weight.shape[1] * (packed or 1))
    complaints = []
    if claimed and weight.dtype not in STORED.get((claimed.kind, claimed.bits), ()):
        complaints = [f"config.json says {claimed}, the file holds {weight.dtype}"]
    elif claim and claimed:
        complaints = list(_scale_complaints(shape, own, claim, claimed))
    elif weight.dtype not in PLAIN:
        complaints = [f"config.json says not quantized, the file holds {weight.dtype}"]
    if claim and claimed and not (complaints and weight.dtype in PLAIN):
        layer = Layer(module, scheme_name(claimed, claim.activations), shape, claimed)
    else:
        layer = Layer(module, PLAIN.get(weight.dtype, weight.dtype.lower()), shape, None)
    return layer, [f"{module}: {complaint}" for complaint in complaints]


def _scale_complaints(
    shape: tuple[int, int], own: Mapping[str, TensorInfo], claim: Claim, claimed: Quantization
) -> Iterator[str]:
    """Where the scales of a layer are not what the config says of it. own: its tensors by the last part of the name."""
    scale = own.get("weight_scale")
    if scale is None:
        yield f"config.json says {claimed}, the file holds no weight_scale"
        return
    rows, columns = shape
    wanted: dict[str, list[tuple[int, ...]]] = {"tensor": [(), (1,)], "channel": [(rows,), (rows, 1)]}
    if claimed.strategy in GROUPED and claimed.group_size:
        wanted[claimed.strategy] = [(rows, -(-columns // claimed.group_size))]
    if scale.dtype not in (GROUP_SCALES if claimed.strategy in GROUPED else PLAIN):
        yield f"config.json says {claimed}, the scales are stored as {scale.dtype}"
    if claimed.strategy in wanted and scale.shape not in wanted[claimed.strategy]:
        yield f"config.json says {claimed}, the scales have shape {list(scale.shape)}"
    static = claim.activations is not None and not claim.activations.dynamic
    stored = "input_scale" in own or "input_global_scale" in own
    if static and not stored:
        yield "config.json says static activation scales, the file holds none"
    if stored and not static and not (claim.activations and claim.activations.strategy in GROUPED):
        yield "config.json says no static activation scales, the file holds some"


def not_finite(tensors: Iterable[TensorInfo]) -> tuple[str, ...]:
    """Names of the tensors with NaN or infinity, which are read one at a time."""
    import torch

    def odd(tensor: torch.Tensor) -> bool:
        wide = tensor.float() if tensor.itemsize == 1 else tensor  # torch asks no 8-bit float whether it is finite
        return tensor.is_floating_point() and not bool(torch.isfinite(wide).all())

    return tuple(tensor.name for tensor in tensors if odd(read_tensor(tensor)))


# --- what the serving stack makes of it -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """error: it will not load, or will compute something else. warning: it loads, and something is worth knowing.

    of_machine: it is this machine that can't, and another one may.
    """

    level: Literal["error", "warning"]
    what: str
    fix: str
    of_machine: bool = False


error, warning = partial(Finding, "error"), partial(Finding, "warning")


def lint(folder: Path, build: Build | None = None, machine: Machine | None = None) -> list[Finding]:
    """What an engine build (default: the installed one) on a machine (default: this one) makes of a checkpoint.

    Errors come first. An empty list says that nothing speaks against it; a folder that is no checkpoint at all is one
    finding, not an exception.
    """
    build = build or engine_build()
    try:
        config, found = refuse_unsafe(folder), inspect(folder)
    except CheckpointError as refusal:
        return [error(refusal.what, refusal.fix)]
    claims = _read_claims(config)
    findings = [
        *_quantization(config, claims, found),
        *_head(claims, found),
        *_hardware(found, build, machine),
        *_sizes(config, found, build),
        *_tokenizer(folder),
    ]
    return sorted(findings, key=lambda finding: finding.level != "error")


def _quantization(config: dict[str, Any], claims: list[Claim], found: Inspection) -> Iterator[Finding]:
    if found.mismatches:
        more = f" (and {len(found.mismatches) - 1} more)" if len(found.mismatches) > 1 else ""
        fix = "quantize and save it again, with save_compressed=True; do not edit config.json"
        yield error(f"config and tensors disagree: {found.mismatches[0]}{more}", fix)
    quantization = config.get("quantization_config") or {}
    if quantization and (method := quantization.get("quant_method")) != "compressed-tensors":
        yield warning(f"quant_method is {method!r}, which labkit does not judge", "see vLLM's documentation")
        return
    for name in sorted({claim.format for claim in claims}):
        if name == "dense":
            what = "the format is 'dense': quantized values stored as BF16, so nothing is smaller"
            yield error(what, "save again with save_compressed=True")
        elif name not in FORMATS:
            yield error(f"the format is {name!r}, which vLLM does not know", f"use one of {', '.join(FORMATS)}")
    for weights in (claim.weights for claim in claims if claim.weights):
        ordering = f"the activation ordering is {weights.actorder!r}"
        if weights.actorder in REMOVED_ORDERINGS:
            fix = 'quantize again with GPTQModifier(actorder=None) or "static"'
            yield error(f"{ordering}, which vLLM no longer loads", fix)
        elif weights.actorder and weights.strategy == "channel":
            yield warning(
                f"{ordering} on channel-wise weights: servers with an older compressed-tensors refuse it",
                "quantize again with GPTQModifier(actorder=None); with one scale a channel nothing is lost",
            )


def _head(claims: list[Claim], found: Inspection) -> Iterator[Finding]:
    for head in (layer for layer in found.layers if layer.weights and layer.name.endswith("lm_head")):
        if not any("lm_head" in target for claim in claims for target in claim.targets):
            yield error(
                "lm_head is quantized, and no target names it: to vLLM it is no Linear layer: its scales fit nowhere",
                'put ignore=["lm_head"] into the recipe, or name it: targets=["Linear", "re:.*lm_head"]',
            )
        yield warning(
            f"lm_head is quantized ({head.weights}): every token's probabilities pass through it",
            'put ignore=["lm_head"] into the recipe, unless its bytes matter more (lab 01 measures both)',
        )


def _hardware(found: Inspection, build: Build, machine: Machine | None) -> Iterator[Finding]:
    schemes = {layer.scheme for layer in found.layers if layer.weights} or {"bf16"}
    if found.kv_cache == "fp8":
        schemes.add("fp8-kv-cache")
    for scheme in sorted(schemes):
        if scheme not in SCHEMES:
            fix = "try it with vLLM, or choose a scheme that `labkit doctor` lists"
            yield warning(f"the scheme {scheme} is not in the capability matrix", fix)
            continue
        answer = capability(scheme, machine, build)
        if answer.verdict == "no":
            yield error(f"{scheme} does not run here: {answer.reason}", answer.alternative, of_machine=True)
        elif answer.verdict != "native":
            yield warning(f"{scheme} is {answer.verdict} here: {answer.reason}", answer.alternative)


def _sizes(config: dict[str, Any], found: Inspection, build: Build) -> Iterator[Finding]:
    heads = int(config.get("num_attention_heads") or 0)
    size = int(config.get("head_dim") or (int(config.get("hidden_size") or 0) // heads if heads else 0))
    if build == "cpu" and size and size not in CPU_HEAD_SIZES:
        known = ", ".join(map(str, CPU_HEAD_SIZES))
        yield error(f"attention heads of {size} channels have no kernel on a CPU ({known} do)", "use a GPU")
    if build == "cpu" and found.kv_cache == "fp8" and size % 32:
        yield error(f"an FP8 KV cache on a CPU needs heads of a multiple of 32 channels, not {size}", "use BF16")
    for layer in found.layers:
        rows, columns = layer.shape
        group, problem = layer.weights.group_size if layer.weights else 0, ""
        if group and columns % group:
            problem = f"groups of {group} do not divide its {columns} columns"
        elif build == "cpu" and layer.weights and layer.weights.bits == 4 and (rows % 32 or columns % 32):
            problem = f"{rows} × {columns} is no multiple of 32, which the CPU's 4-bit kernel needs"
        if problem:
            yield error(f"{layer.name}: {problem}", "choose another group size, or ignore this layer")
            break  # the other layers have the same widths; one finding says it


def _tokenizer(folder: Path) -> Iterator[Finding]:
    if not any((folder / name).is_file() for name in TOKENIZERS):
        yield error("there is no tokenizer beside the weights", "save the base model's tokenizer with it")
        return
    inside = folder / "tokenizer_config.json"
    older = inside.is_file() and '"chat_template"' in inside.read_text(encoding="utf-8")
    if not older and not (folder / "chat_template.jinja").is_file():
        yield warning(
            "there is no chat template: the chat endpoint and chat evaluations will refuse it",
            "fine for a base model; for an instruct model, save its tokenizer again",
        )
