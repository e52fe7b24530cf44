"""Draws docs/results.png from the ledger of the last run: `python -m tools.picture [WORKSPACE]`.

Only measured headlines are drawn: accuracy of the main task on vLLM, and the bytes of each checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

from labkit import figures
from labkit.errors import MissingResult
from labkit.profiles import TINY
from labkit.workspace import Workspace, find_workspace

PICTURE = Path(__file__).parent.parent / "docs" / "results.png"
VARIANTS = ("bf16", "fp8-dynamic", "int8-rtn", "int8-smoothquant-gptq")


def draw(workspace: Workspace, picture: Path = PICTURE) -> str:
    """Writes the picture and returns its description; raises MissingResult if a variant has no headline."""
    found = {
        (m.variant, m.metric): m
        for m in workspace.ledger.headlines(model=TINY.model)
        if m.metric == "bytes" or m.task == TINY.main_task.name
    }
    rows = {}
    for variant in VARIANTS:
        accuracy, size = found.get((variant, TINY.main_task.metric)), found.get((variant, "bytes"))
        if accuracy is None or size is None:
            raise MissingResult(f"{workspace.root} has no headline for {variant}", fix="run the labs first: make labs")
        rows[variant] = (accuracy.value, accuracy.stderr or 0.0, size.value)
        n = accuracy.n
    told = ", ".join(f"{v} {accuracy:.3f}" for v, (accuracy, _, _) in rows.items())
    figure = figures.scoreboard(rows, f"Accuracy on {n} unseen problems and size: {told}.")
    picture.parent.mkdir(exist_ok=True)
    figure.drawing.savefig(picture, dpi=110)
    return figure.description


if __name__ == "__main__":
    print(draw(Workspace(find_workspace(sys.argv[1] if len(sys.argv) > 1 else ""))))
