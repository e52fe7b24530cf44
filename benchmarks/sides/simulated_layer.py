"""One linear layer as it is and simulated, in turns. Arguments: ROWS COLUMNS TOKENS TURNS RESULT_FILE

The simulated one has FP4 weights, FP8 activations and LoRC of rank 8. Writes {"plain": [seconds], "simulated": [...]}.
"""

import json
import sys
import time
from pathlib import Path

import torch

from labkit.numerics import E2M1, E4M3, for_each_column, group_scales, low_rank_correction, quantize_dequantize
from labkit.simulation import SimulatedLinear

rows, columns, tokens, turns = map(int, sys.argv[1:5])
torch.manual_seed(0)
plain = torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16)
simulated = SimulatedLinear(torch.nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16))
scale = for_each_column(group_scales(plain.weight.data, E2M1, columns), columns)
simulated.weight.data.copy_(quantize_dequantize(plain.weight.data, scale, E2M1))
simulated.activations = E4M3
simulated.correction = low_rank_correction(plain.weight.data, simulated.weight.data).to(torch.bfloat16)
x = torch.randn(1, tokens, columns, dtype=torch.bfloat16)

found: dict[str, list[float]] = {"plain": [], "simulated": []}
with torch.no_grad():
    for turn in range(turns + 2):
        for name, layer in (("plain", plain), ("simulated", simulated)):
            began = time.perf_counter()
            layer(x)
            if turn >= 2:  # the first two warm up
                found[name].append(time.perf_counter() - began)
Path(sys.argv[5]).write_text(json.dumps(found))
