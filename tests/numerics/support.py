"""What the tests of numerics share: settings of property tests, llm-compressor on a small Llama."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

from tests.models import make_model, small_tokenizer

# A slow machine must not fail a test, so no deadline; nothing is kept between runs.
STEADY = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)


def each(name: str, *formats: Any) -> pytest.MarkDecorator:
    """A test for each format or dtype, named after it."""
    return pytest.mark.parametrize(name, formats, ids=lambda one: getattr(one, "name", str(one).removeprefix("torch.")))


both_dtypes = each("dtype", torch.float32, torch.bfloat16)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_llama(folder: Path) -> torch.nn.Module:
    """Hidden size 128, two layers, random weights, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(make_model(folder), dtype=torch.float32).eval()


def calibration_rows(count: int = 32, length: int = 32) -> Tensor:
    """[count, length] token ids, all rows equally long so that nothing is padded."""
    return torch.randint(5, len(small_tokenizer()), (count, length), generator=torch.Generator().manual_seed(0))


def seen_by(model: torch.nn.Module, names: list[str], rows: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What the named modules get and give in one forward: (input, output)."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _module, args, output, name=name: seen.update({name: (args[0].detach(), output.detach())})
        )
        for name in names
    ]
    with torch.no_grad():
        model(rows)
    for hook in hooks:
        hook.remove()
    return seen


def compress(model: torch.nn.Module, recipe: list[Any], rows: Tensor, folder: Path) -> None:
    """llm-compressor's oneshot on these rows; its logs go to the folder, since it writes them where it stands."""
    from datasets import Dataset
    from llmcompressor import oneshot

    data = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()})
    counts = {"max_seq_length": rows.shape[1], "num_calibration_samples": rows.shape[0]}
    here = Path.cwd()
    os.chdir(folder)
    try:
        oneshot(model=model, processor=small_tokenizer(), dataset=data, recipe=recipe, **counts)
    finally:
        os.chdir(here)
