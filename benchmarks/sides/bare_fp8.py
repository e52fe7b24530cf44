"""Theirs: FP8 by a bare llm-compressor script, as its own examples do it. Arguments: BASE FINAL"""

import sys

from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

base, final = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
tokenizer = AutoTokenizer.from_pretrained(base)
oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"]))
model.save_pretrained(final, save_compressed=True)
tokenizer.save_pretrained(final)
