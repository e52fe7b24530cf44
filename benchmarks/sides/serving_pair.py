"""INT8 W8A8 against BF16 in vLLM, in turns. Arguments: BASE WORKSPACE ANSWER PAIRS

Both servers are up at once and loaded by turns; then engines without a server, by turns as well, for decode alone: on
two cores of a shared machine the same load took from 3.7 to 8.6 s within four minutes. ANSWER gets
{"bf16": {"overall": [seconds of the load], "decode": [seconds of a step]}, "int8": {...}}.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import labkit
from labkit.serving import Load

base, workspace, answer, pairs = sys.argv[1:]
LOAD = Load(concurrency=32, requests=32, input_tokens=128, output_tokens=64)
SECONDS = 20.0  # that an engine is measured, without its start

lab = labkit.open_lab("04_serving_throughput", workspace=workspace, model=base)
serving = replace(lab.profile.serving, concurrencies=(LOAD.concurrency,), compiled=True)
lab = replace(lab, profile=replace(lab.profile, serving=serving))

from llmcompressor import oneshot  # noqa: E402  where the labs have it
from llmcompressor.modifiers.quantization import QuantizationModifier  # noqa: E402

with lab.quantizing("int8-rtn") as job:
    model = job.load()
    oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]))
    job.save(model)

folders = {"bf16": lab.base, "int8": lab.checkpoint("int8-rtn")}
found: dict[str, dict[str, list[float]]] = {name: {"overall": [], "decode": []} for name in folders}
servers = {name: lab.serve(folder) for name, folder in folders.items()}
try:
    for _ in range(int(pairs)):
        for name, server in servers.items():
            for one in lab.put_load(server, lab.base, [LOAD])[LOAD]:
                found[name]["overall"].append(one.wall_seconds)
finally:
    for server in servers.values():
        server.stop()
for _ in range(int(pairs)):
    for name, folder in folders.items():
        alone = lab.measure_alone(folder, SECONDS)
        found[name]["decode"].append(alone.step_ms[LOAD.concurrency].median / 1e3)
Path(answer).write_text(json.dumps(found))
