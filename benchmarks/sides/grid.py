"""Lab 06's grid on the embedded model. Arguments: WORKSPACE RESULT_FILE

Writes {"seconds", "peak_bytes", "scored"}: from the first scheme to the last, loading left out.
"""

import json
import sys
import time
from pathlib import Path

from labkit import memory, open_lab
from labkit.simulation import paper_grid, simulating

lab = open_lab("06_fp4_weights_lorc", profile="tiny", workspace=sys.argv[1])
settings, texts = lab.profile.simulation, lab.held_out()
rows = lab.calibration_rows(settings.rows).input_ids
network, scored, began = lab.load(lab.base), 0, time.perf_counter()
with memory.peak() as peak, simulating(network) as simulation:
    for method, problems in (("gptq", settings.limit), ("rtn", 0)):
        for scheme in paper_grid():
            simulation.apply(scheme, method=method, rows=rows, dampening_frac=settings.dampening_frac)
            lab.score(simulation, texts, problems=problems)
            scored += 1
found = {"seconds": time.perf_counter() - began, "peak_bytes": peak.peak_bytes, "scored": scored}
Path(sys.argv[2]).write_text(json.dumps(found))
