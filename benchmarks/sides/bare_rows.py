"""Theirs: calibration rows as llm-compressor's examples prepare them. Arguments: BASE DATA CACHE ANSWER ROWS TOKENS"""

import json
import os
import sys
from pathlib import Path

base, data, cache, answer, rows, tokens = sys.argv[1:]
os.environ["HF_DATASETS_CACHE"] = cache

from datasets import load_dataset  # noqa: E402  after the place of its cache is known
from transformers import AutoTokenizer  # noqa: E402

tokenizer = AutoTokenizer.from_pretrained(base)
dataset = load_dataset("json", data_files=data, split=f"train[:{rows}]").shuffle(seed=42)


def preprocess(example):
    return {"text": tokenizer.apply_chat_template(example["messages"], tokenize=False)}


def tokenize(sample):
    return tokenizer(sample["text"], padding=False, max_length=int(tokens), truncation=True, add_special_tokens=False)


dataset = dataset.map(preprocess)
dataset = dataset.map(tokenize, remove_columns=dataset.column_names)
Path(answer).write_text(json.dumps([len(dataset), sum(map(len, dataset["input_ids"]))]))
