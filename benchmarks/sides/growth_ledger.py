"""A ledger of so many lines, read and summed up as the scorecard does it. Arguments: ANSWER LEDGER LINES

ANSWER gets {"size": lines, "seconds", "peak_bytes": null}; writing the lines is not in the seconds.
"""

import json
import sys
import time
from pathlib import Path

from labkit.ledger import Ledger, Measurement

answer, path, lines = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
ledger = Ledger(path)
ledger.append(
    Measurement("accuracy", "exact_match", 0.9, f"variant-{i % 100}", "tiny", task="tiny_problems", n=500)
    for i in range(lines)
)
began = time.perf_counter()
assert len(ledger.headlines()) == 100
answer.write_text(json.dumps({"size": lines, "seconds": time.perf_counter() - began, "peak_bytes": None}))
