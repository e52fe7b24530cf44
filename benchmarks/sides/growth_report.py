"""The report of a run of so many labs, each in seven failed with a long log. Arguments: ANSWER FOLDER LABS

ANSWER gets {"size": labs, "seconds", "peak_bytes": null}.
"""

import json
import sys
import time
from pathlib import Path

from labkit.ops.records import Failure, LabResult, RunReport
from labkit.ops.report import write_report

answer, folder, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
failure = Failure("cell 7", "ValueError: too hot", "a traceback\n" * 40, "a line of a log\n" * 40)
labs = tuple(
    LabResult(f"{i:03}_lab", "failed" if i % 7 == 0 else "passed", seconds=60.0, failure=None if i % 7 else failure)
    for i in range(count)
)
report = RunReport("tiny", 60.0 * count, {}, labs, True, "", "run", "2026-01-01T00:00:00Z", "workspace", {}, "machine")
folder.mkdir()
write_report(report, folder)  # once before: what templates cost at first is not what grows
began = time.perf_counter()
write_report(report, folder)
answer.write_text(json.dumps({"size": count, "seconds": time.perf_counter() - began, "peak_bytes": None}))
