"""Theirs: INT8 with SmoothQuant and GPTQ by a bare llm-compressor script. Arguments: BASE FINAL ROWS

ROWS is a JSON list of token rows: the ones that labkit calibrates with. The seed is labkit's too, so that rows come in
the same order and both sides write the same bytes.
"""

import json
import sys

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

base, final, rows_file = sys.argv[1:]
with open(rows_file, encoding="utf-8") as file:
    rows = json.load(file)
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(base)
oneshot(
    model=model,
    recipe=[
        SmoothQuantModifier(smoothing_strength=0.8),
        GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"], dampening_frac=0.1, actorder=None),
    ],
    dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}),
    max_seq_length=256,
    num_calibration_samples=len(rows),
)
model.save_pretrained(final, save_compressed=True)
tokenizer.save_pretrained(final)
