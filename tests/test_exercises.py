"""Exercises as a learner meets them: stubs that stand say "not yet" and stop nothing, and wrong answers are caught.

One run of all labs, on a copy without the worked answers. After each check the copy tries wrong answers that people
give: the check must refuse every one of them with its hint. Then the stub is put back.
"""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LABKIT, ROOT, clean_environment
from tests.ops.probes import outputs
from tools import notebooks

# Lab and the name that its exercise asks for, to wrong answers as they would be typed.
WRONG: dict[str, dict[str, tuple[str, ...]]] = {
    "00_start_here": {
        "tokens": ("0.9 * 24e9 / per_token", "(24e9 - weights['fp8-dynamic'].total) / per_token"),
        "older": ("config | {'num_key_value_heads': kv_heads}", "config | {'num_key_value_heads': 1}"),
    },
    "01_fp8_rtn": {
        "largest_relative_error": ("2**-3", "'a lot'"),
        "saved_share": ("after.group('lm_head').bytes / after.total_bytes", "0.5"),
    },
    "02_int8_smoothquant_gptq": {
        "s_j": ("64 / 0.25", "64**0.5 * 0.25**0.5"),
        "gptq_alone_recovers": ("True", "'no'"),
    },
    "03_evaluation": {
        "unpaired_error": ("baseline.stderr + fp8.stderr + 0.01", "None"),
        "setting_that_differs": ("'limit'", "'bos'"),
    },
    "04_serving_throughput": {
        "mean_itl_ms": ("arrived[-1] / len(arrived) * 2e3", "(arrived[-1] - arrived[0]) / (len(arrived) - 1)"),
        "longest_in_tokens": ("server.context // 2", "server.context + 1"),
        "for_many_users": ("'w4a16'", "'bf16'"),
    },
    "05_static_fp8_kv_cache": {
        "requests": ("6e9 // (per_token['bf16'] * 4096)", "6e9 / per_token['fp8']"),
        "happened": ("'rounded to zero'", "'nothing'"),
    },
    "06_fp4_weights_lorc": {
        "bits_of_mxfp4": ("4 + 8", "4"),
        "happens": ("'smaller'", "'nothing'"),
    },
    "07_publish": {
        "says": ("'the old score'", "'the mean of both'"),
        "happens": ("'it is written outside'", "'the file is left out'"),
    },
    "08_scale_out": {
        "gpu_steps": ("2 * 3 * 2", "2 * (3 + 1)"),
        "red_step": ("'quantize'", "'evaluate'"),
        "saved": ("gpus[0] - gpus[2]", "0"),
    },
}
ROWS = 8  # scored in this run: what is tested is the exercises, not the models

PROBE = """import json
from labkit.errors import CheckFailed
refused = []
for wrong in {wrong!r}:
    exec(f"{name} = {{wrong}}")
    try:
        exec({check!r})
    except CheckFailed as refusal:  # a name that no lab uses: it is gone after this block
        refused.append([wrong, str(refusal)])
{stub}
print("refused", json.dumps(refused))"""


def handed_out(lab: str) -> dict[str, Any]:
    """The notebook without its worked answers, and with a probe of wrong answers after each check."""
    notebook = notebooks.read(ROOT / "notebooks" / f"{lab}.ipynb")
    cells: list[dict[str, Any]] = []
    name = stub = ""
    for place, cell in enumerate(notebook["cells"]):
        source, tags = notebooks.source(cell), notebooks.tags(cell)
        if "solution" in tags:
            continue
        cells.append(cell)
        if "exercise" in tags:
            name, stub = str(ast.parse(source).body[0].targets[0].id), source  # type: ignore[attr-defined]
        elif name and "lab.exercise(" in source:
            code = PROBE.format(wrong=WRONG[lab][name], name=name, check=source, stub=stub)
            about = {"id": f"probe{place}", "metadata": {}, "outputs": [], "execution_count": None}
            cells.append({"cell_type": "code", "source": code, **about})
            name = ""
    return {**notebook, "cells": cells}


def test_every_exercise_has_two_wrong_answers_or_more() -> None:
    for path in notebooks.lab_paths():
        cells = [cell for cell in notebooks.read(path)["cells"] if "exercise" in notebooks.tags(cell)]
        asked = [ast.parse(notebooks.source(cell)).body[0].targets[0].id for cell in cells]  # type: ignore[attr-defined]
        assert list(WRONG[path.stem]) == asked
        assert all(len(set(answers)) >= 2 for answers in WRONG[path.stem].values())


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_stubs_say_not_yet_the_rest_runs_and_wrong_answers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    for lab in WRONG:
        (tmp_path / "notebooks" / f"{lab}.ipynb").write_text(json.dumps(handed_out(lab)))
    command = [*LABKIT, "run", "--jobs", "2", "--output", "out", "-p", "limit", str(ROWS)]
    environment = clean_environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    for lab, asked in WRONG.items():
        said = outputs(tmp_path / "out" / f"{lab}.ipynb")
        assert said.count("Not yet: replace the `...`") == len(asked), lab
        found = [json.loads(line.removeprefix("refused ")) for line in said.splitlines() if line.startswith("refused ")]
        assert [[wrong for wrong, _ in refused] for refused in found] == [list(wrong) for wrong in asked.values()], lab
        assert all("Not quite" in error and "Now: " in error for refused in found for _, error in refused)
