"""A comparison for readers: a table in Markdown, and the files that go to the store."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from labkit.pipeline.steps import Compared
from labkit.transfer import Address, bundle, send
from labkit.workspace import publishing

COLUMNS = ("model", "variant", "task", "baseline", "value", "recovery", "95% interval", "verdict")


def markdown(found: Sequence[Compared]) -> str:
    """The comparison as a table, and a sentence for each row of it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in found:
        r = row.recovery
        figures = [f"{row.baseline.value:.3f}", f"{row.candidate.value:.3f} ± {row.candidate.stderr:.3f}"]
        judged = [f"{r.ratio:.1%}", f"{r.ci_low:.1%} to {r.ci_high:.1%}", r.verdict]
        lines.append("| " + " | ".join([row.model, row.variant, row.task, *figures, *judged]) + " |")
    said = [f"- `{row.variant}` of {row.model}, {row.task}: {row.recovery.sentence()}" for row in found]
    return "\n".join(["# Comparison", "", *lines, "", *said, ""])


def put_comparison(found: Sequence[Compared], store: Address) -> Address:
    """Sends the comparison, as a table and as JSON; returns where it is."""
    place = store.below("comparison")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "comparison"
        with publishing(folder) as stage:
            (stage / "comparison.md").write_text(markdown(found), encoding="utf-8")
            facts = json.dumps([row.facts() for row in found], indent=1) + "\n"
            (stage / "comparison.json").write_text(facts, encoding="utf-8")
        send(bundle(folder), place)
    return place
