"""Makes, untimed, what the quantizing benchmarks work on. Arguments: SHAPE FOLDER ROWS_FILE

SHAPE is `speed-0.4b` or `llama-44m`: random weights from a fixed seed, in BF16, with the embedded model's tokenizer.
ROWS_FILE gets 64 rows of 256 random tokens, the ones that labkit draws itself.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers

from labkit.calibration import random_text_set
from labkit.checkpoint import load_tokenizer
from labkit.profiles import SPEED
from labkit.tiny import TOKENIZER_FILES, WEIGHTS, materialize_speed_model

shape, folder, rows_file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
if shape == SPEED:
    folder.mkdir(parents=True)
    materialize_speed_model(folder)
else:
    config = transformers.LlamaConfig(
        vocab_size=16_384,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copyfile(WEIGHTS / name, folder / name)
rows_file.write_text(json.dumps(random_text_set(load_tokenizer(folder), 64, 256).input_ids), encoding="utf-8")
