"""Makes, untimed, what the quantizing benchmarks work on. Arguments: SHAPE FOLDER ROWS_FILE

SHAPE is `llama-0.4b`, `llama-44m` or `speed-0.4b`: random weights from a fixed seed, in BF16, with the embedded model's
tokenizer. The first two have as many blocks as models of their size have, labkit's speed model two wide ones.
ROWS_FILE gets 64 rows of 256 random tokens, the ones that labkit draws itself.
"""

import json
import sys
from pathlib import Path

import transformers

from labkit.calibration import random_text_set
from labkit.checkpoint import load_tokenizer
from labkit.profiles import SPEED
from labkit.tiny import materialize_random, materialize_speed_model

SHAPES = {
    "llama-0.4b": {
        "vocab_size": 2560,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
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

shape, folder, rows_file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
folder.mkdir(parents=True)
if shape == SPEED:
    materialize_speed_model(folder)
else:
    materialize_random(folder, transformers.LlamaConfig(max_position_embeddings=2048, **SHAPES[shape]))
rows_file.write_text(json.dumps(random_text_set(load_tokenizer(folder), 64, 256).input_ids), encoding="utf-8")
