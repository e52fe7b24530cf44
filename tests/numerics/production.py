"""A small real Llama and llm-compressor's own entry point, to hold labkit's methods against what production does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.models import make_model, small_tokenizer


def small_llama(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Hidden size 128, two layers, random weights."""
    return AutoModelForCausalLM.from_pretrained(make_model(folder), dtype=dtype).eval()


def calibration_rows(count: int = 32, length: int = 32) -> Tensor:
    """[count, length] token ids, all rows equally long so that nothing is padded."""
    return torch.randint(5, len(small_tokenizer()), (count, length), generator=torch.Generator().manual_seed(0))


def compress(model: torch.nn.Module, recipe: list[Any], rows: Tensor, folder: Path) -> None:
    """llm-compressor's oneshot on these rows; its logs go to the folder, since it writes them where it stands."""
    from llmcompressor import oneshot

    data = Dataset.from_dict({"input_ids": rows.tolist(), "attention_mask": torch.ones_like(rows).tolist()})
    here = Path.cwd()
    os.chdir(folder)
    try:
        oneshot(
            model=model,
            processor=small_tokenizer(),
            dataset=data,
            recipe=recipe,
            max_seq_length=rows.shape[1],
            num_calibration_samples=rows.shape[0],
        )
    finally:
        os.chdir(here)
