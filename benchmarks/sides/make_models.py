"""Makes, untimed, what the quantizing benchmarks work on. Arguments: SHAPE FOLDER ROWS_FILE ROWS

SHAPE is a name below or `speed-0.4b`, labkit's own of two wide blocks; the others have as many as models of their
size have. Random weights from a fixed seed, in BF16, with the embedded model's tokenizer; what is larger than SHARD is
cut into several files. ROWS_FILE gets ROWS rows of 256 random tokens, the ones that labkit draws itself.
"""

import json
import sys
from pathlib import Path

import transformers

from labkit.calibration import random_text_set
from labkit.checkpoint import load_tokenizer
from labkit.profiles import SPEED
from labkit.tiny import materialize_random, materialize_speed_model

SHARD = "500MB"
SHAPES = {
    "llama-1.5b": {
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 30,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "llama-0.4b": {
        "vocab_size": 2560,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
    },
    "llama-0.1b": {
        "vocab_size": 16_384,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    },
    "llama-11m": {
        "vocab_size": 4096,
        "hidden_size": 320,
        "intermediate_size": 896,
        "num_hidden_layers": 6,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
    },
    "llama-44m": {
        "vocab_size": 16_384,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
}

shape, folder, rows_file, rows = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
folder.mkdir(parents=True)
if shape == SPEED:
    materialize_speed_model(folder)
else:
    config = transformers.LlamaConfig(max_position_embeddings=2048, **SHAPES[shape])
    materialize_random(folder, config, max_shard_size=SHARD)
rows_file.write_text(json.dumps(random_text_set(load_tokenizer(folder), rows, 256).input_ids), encoding="utf-8")
