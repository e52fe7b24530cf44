"""LoRC of rank 8 on every layer of a model. Arguments: BASE RESULT_FILE

Writes {"seconds", "more_bytes", "layer_bytes", "model_bytes"}: by how much the process grew at most while it calculated
the corrections, and what the largest layer and all layers take in float32.
"""

import json
import sys
import time
from pathlib import Path

from labkit import checkpoint, memory
from labkit.numerics import E2M1, E4M3
from labkit.simulation import Scheme, Weights, simulating

model = checkpoint.load(Path(sys.argv[1]))
with simulating(model) as simulation:
    simulation.apply(Scheme(Weights(E2M1), E4M3))
    memory.return_free_memory()
    before, began = memory.process_bytes(), time.perf_counter()
    with memory.peak() as peak:
        simulation.apply(Scheme(Weights(E2M1), E4M3, rank=8))
    seconds = time.perf_counter() - began
    sizes = [4 * original.numel() for original in simulation.original.values()]
found = {
    "seconds": seconds,
    "more_bytes": peak.peak_bytes - before,
    "layer_bytes": max(sizes),
    "model_bytes": sum(sizes),
}
Path(sys.argv[2]).write_text(json.dumps(found))
