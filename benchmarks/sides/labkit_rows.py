"""Ours: calibration rows as lab 02 gets them. Arguments: BASE DATA WORKSPACE ANSWER ROWS TOKENS"""

import json
import sys
from pathlib import Path

import labkit

base, data, workspace, answer, rows, tokens = sys.argv[1:]
lab = labkit.open_lab(
    "02_int8_smoothquant_gptq", profile="workbench", workspace=workspace, model=base, data=str(Path(data).parent)
)
assert lab.profile.calibration.max_length == int(tokens)
dataset = lab.calibration_rows(int(rows)).dataset()
Path(answer).write_text(json.dumps([len(dataset), sum(map(len, dataset["input_ids"]))]))
