"""What a checkpoint's config claims about each layer, as compressed-tensors writes it into `quantization_config`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PLAIN = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
GROUPED = ("group", "tensor_group")


@dataclass(frozen=True)
class Quantization:
    """How one tensor is quantized. kind: `int` or `float`. group_size counts values; 0 where there are no groups."""

    bits: int
    kind: str
    strategy: str  # tensor, channel, token, group, tensor_group, block
    dynamic: bool
    group_size: int
    symmetric: bool
    actorder: str

    @staticmethod
    def parse(args: Mapping[str, Any] | None) -> Quantization | None:
        """From compressed-tensors' QuantizationArgs as JSON; None stays None."""
        if not args:
            return None
        return Quantization(
            bits=int(args.get("num_bits", 8)),
            kind=str(args.get("type", "int")),
            strategy=str(args.get("strategy") or "tensor"),
            dynamic=bool(args.get("dynamic", False)),
            group_size=max(0, int(args.get("group_size") or 0)),
            symmetric=bool(args.get("symmetric", True)),
            actorder=str(args.get("actorder") or ""),
        )

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

    @property
    def scheme(self) -> str:
        """The scheme's name, as in the capability matrix (`labkit.hardware`) where that has one."""
        return scheme_name(self.weights, self.activations)


def scheme_name(weights: Quantization | None, activations: Quantization | None) -> str:
    """`int8-w8a8`, `fp8-w8a8-dynamic`, `w4a16`, ...; `bf16` for no quantization."""
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


def read_claims(config: Mapping[str, Any]) -> list[Claim]:
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


def matches(module: str, pattern: str) -> bool:
    """Whether a target or ignore entry names a module: `re:...`, the whole name, or the class of all linear layers."""
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    return pattern in (module, "Linear")


def claim_for(module: str, claims: list[Claim], ignore: list[str]) -> Claim | None:
    """What the config claims about a linear layer: None if it is ignored or no group targets it.

    A group that names the layer wins over one that names the class, as in compressed-tensors.
    """
    if any(matches(module, pattern) for pattern in ignore):
        return None
    fitting = [(target == "Linear", n) for n, c in enumerate(claims) for target in c.targets if matches(module, target)]
    return claims[min(fitting)[1]] if fitting else None
