"""How far checkpoints' next tokens are from their base model's, untimed. Arguments: RESULT_FILE BASE CHECKPOINT...

RESULT_FILE gets a list for each checkpoint: nats a token on each of 64 rows of random tokens, of another seed than
calibration's.
"""

import json
import sys
from pathlib import Path

from labkit.calibration import random_text_set
from labkit.checkpoint import load_tokenizer
from labkit.divergence import divergences_by_row

result, base, *checkpoints = map(Path, sys.argv[1:])
rows = random_text_set(load_tokenizer(base), 64, 256, seed=1).input_ids
result.write_text(json.dumps(divergences_by_row(base, checkpoints, rows)))
