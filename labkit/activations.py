"""What flows into a model's linear layers: the largest magnitude of each channel, and a sample of rows.

Outliers live in channels, not in tokens: the same few hidden channels are large for every token. To see that, and to
compute SmoothQuant's scales, one needs each layer's input on real text; forward hooks collect it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Captured:
    """The inputs X of one linear layer, in float32 on the CPU.

    absmax: [channels], the largest |X| over all tokens. sample: [tokens, channels], the first tokens seen.
    tokens: how many tokens `absmax` covers.
    """

    layer: str
    absmax: torch.Tensor
    sample: torch.Tensor
    tokens: int


def linear_layers(model: Any, containing: str = "") -> dict[str, Any]:
    """The model's linear layers by name, without the output head; `containing` keeps those whose name has that text."""
    import torch

    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and containing in name and not name.endswith("lm_head")
    }
    if not found:
        raise UsageError(f"no linear layer has {containing!r} in its name", fix="print(model) shows the names")
    return found


def capture(
    model: Any, rows: Sequence[Sequence[int]], *, containing: str = "", sample_tokens: int = 256
) -> dict[str, Captured]:
    """Runs token rows (lists of ids) through `model` and returns what each linear layer was given.

    The model is used where it is (CPU or GPU) and left as it was. Memory: one [channels] vector and one
    [sample_tokens, channels] sample a layer.
    """
    import torch

    layers = linear_layers(model, containing)
    absmax: dict[str, torch.Tensor] = {}
    samples: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    tokens = 0

    def hook(name: str) -> Any:
        def collect(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float().cpu()  # [tokens, channels]
            largest = x.abs().amax(dim=0)  # [channels]
            absmax[name] = torch.maximum(absmax[name], largest) if name in absmax else largest
            have = sum(len(part) for part in samples[name])
            if have < sample_tokens:
                samples[name].append(x[: sample_tokens - have].clone())

        return collect

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers.items()]
    try:
        with torch.no_grad():
            for row in rows:
                model(input_ids=torch.tensor([list(row)], device=model.device))
                tokens += len(row)
    finally:
        for handle in handles:
            handle.remove()
    return {name: Captured(name, absmax[name], torch.cat(samples[name]), tokens) for name in layers}


def outlier_channels(captured: Captured, times: float = 20.0) -> list[int]:
    """Channels whose largest magnitude is at least `times` the median channel's, largest first.

    The criterion is ours, for a picture; LLM.int8() (arXiv 2208.07339) calls a magnitude of 6 and more an outlier.
    """
    ratio = captured.absmax / captured.absmax.median().clamp(min=1e-12)
    order = ratio.argsort(descending=True).tolist()
    return [channel for channel in order if ratio[channel] >= times]
