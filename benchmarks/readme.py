"""Writes benchmarks/README.md from results.json: `python -m benchmarks.readme`."""

from __future__ import annotations

from pathlib import Path

from benchmarks import table
from benchmarks.registry import BENCHMARKS, GROWTHS
from benchmarks.results import RESULTS, Report, Result
from labkit.ops import text
from tools.tables import markdown_table

README = Path(__file__).with_name("README.md")
GPU = Path(__file__).with_name("gpu.md")

HEAD = """\
<!-- Generated from results.json by `python -m benchmarks.readme`. Do not edit. -->
# Benchmarks

labkit against the thing it replaces: `make bench` measures in minutes what takes minutes, `make bench-full` all of it,
and writes results.json and this file; what `make bench` found stays in build/benchmarks.json.
`make bench ARGS="--only fp8 --runs 5"` measures a part and writes nothing.

Every side is a whole process, imports included: wall seconds from its start to its end, and the largest sum of resident
memory over its process tree. The two sides of a pair take turns in the same run. A ratio is that of the medians, ours
divided by theirs, with the smallest and largest of the single pairs; below 1 labkit is faster or smaller.

The three of lab 06 (simulated layer, grid, LoRC) time a part of a process; LoRC's memory is what that part added.
"""

GPU_HEAD = """\
## On a GPU

What `python -m benchmarks.gpu --output benchmarks/gpu.md` found: FP8 against BF16 matrix products at the shapes of a
7B model, two quantizes with the GPU's memory, and the tests marked `gpu`. The roof is what the chip's data sheet
allows, be it arithmetic or memory. labkit digests every file and compares what was saved with the model in
memory, and the bare script does not; and labkit's side comes first. `--dry-run` takes the same steps on a CPU.
"""


def render(report: Report) -> str:
    """The whole README as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    took = text.duration(report.wall_seconds) + (f", in {report.sittings} sittings," if report.sittings > 1 else "")
    parts = [
        HEAD,
        markdown_table(table.HEADER, [table.cells(row) for row in table.rows(report.results)]),
        "",
        *(_growing(report) if report.growth else ()),
        f"Measured on {report.date[:10]} in {took} on {report.machine}; {versions}.",
        "",
        *_lacking(report),
        GPU_HEAD,
        GPU.read_text(encoding="utf-8"),
        "## What is compared",
        "",
        *(_described(result) for result in report.results),
    ]
    return "\n".join(parts) + "\n"


def _lacking(report: Report) -> list[str]:
    """What there is to measure and that run did not."""
    found = {result.name for result in report.results} | {growth.name for growth in report.growth}
    lacking = [name for name in (*BENCHMARKS, *GROWTHS) if name not in found]
    return [f"Newer than that run, and not measured yet: {', '.join(lacking)}.", ""] if lacking else []


def _growing(report: Report) -> list[str]:
    head = """## How cost grows

The same work at several sizes, and the exponent of the size that fits its time or memory best: 1 is linear. Imports are
not in it, and memory is what the work added."""
    return [head, "", markdown_table(table.GROWTH_HEADER, table.growth_rows(report.growth)), ""]


def _described(result: Result) -> str:
    against = f" Against: {result.against}." if result.against else ""
    checked = f" Checked: {result.checked}." if result.checked else ""
    return f"- **{result.what}** (`--only {result.name}`).{against}{checked} Load average before: {result.load:.1f}."


def main() -> None:
    README.write_text(render(Report.from_json(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
