"""Writes the tables and figures of README.md and INSTRUCTORS.md, docs/results.png, and labkit/paces.json.

    python -m tools.tables              all of it, figures and times from the newest run's report.json
    python -m tools.tables --report F   from that report, and from more, a column each: --report F --report G
    python -m tools.tables --check      writes nothing; fails if a table is not what it would become

Each stands between two HTML comments: <!-- labs --> ... <!-- /labs -->, and so on.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labkit import figures, pace
from labkit.errors import LabError, MissingResult
from labkit.files import write_atomically
from labkit.matrix import HARDWARE, SCHEMES, TABLE
from labkit.memory import QWEN_7B, weight_bytes
from labkit.ops import number, size
from labkit.ops.doctor import disk_needed
from labkit.ops.notebooks import find_labs, read_lab
from labkit.profiles import TINY
from labkit.store import Workspace
from tools import notebooks
from tools.navigation import measured_time, parser, reports, where

README, INSTRUCTORS, PICTURE = "README.md", "INSTRUCTORS.md", "docs/results.png"
TASK = TINY.main_task.name
DRAWN = ("bf16", "fp8-dynamic", "int8-rtn", "int8-smoothquant-gptq")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def labs_table(paths: Sequence[Path]) -> str:
    """A line for each lab: its title as a link, the labs before it, its measured time."""
    rows = []
    for path in paths:
        lab = read_lab(path)
        time = (measured_time(notebooks.read(path)) or "").split("; ")[0]
        needs = ", ".join(name[:2] for name in lab.needs)
        rows.append([f"[{path.stem}](notebooks/{path.name})", lab.title, needs or "–", time or "–"])
    return markdown_table(["lab", "what it shows", "needs", "time"], rows)


def hardware_table() -> str:
    """The capability matrix: the verdict for each scheme on each hardware, with the vLLM build made for it."""
    verdict = {(scheme, kind): row.verdict for row in TABLE for scheme in row.schemes for kind in row.hardware}
    rows = [[name, *(verdict[scheme, kind] for scheme in SCHEMES)] for kind, name in HARDWARE.items()]
    return markdown_table(["hardware", *SCHEMES], rows)


def figures_text(runs: Sequence[dict[str, Any]]) -> str:
    """The headline scores of runs, with what they were measured on and over how many samples."""
    rows = []
    for variant, first in runs[0]["headline"].items():
        scores = [run["headline"][variant] for run in runs]
        rows.append([f"`{variant}`", *(number(s["value"], s["stderr"]) for s in scores), str(first["n"])])
    header = ["variant", *(f"score ± standard error ({run['level']})" for run in runs), "samples"]
    task = next(iter(runs[0]["headline"].values()))["task"]
    took = ", ".join(
        f"{pace.rounded_up(run['seconds'])} and at most {peak(run)} of memory ({run['level']})" for run in runs
    )
    return f"{markdown_table(header, rows)}\n\nTask `{task}`; all labs took {took}; {where(runs)}."


def timing_text(runs: Sequence[dict[str, Any]]) -> str:
    """How long each lab of each run took, its peak memory, and what they left on disk."""
    header, rows = ["lab"], [[f"`{lab['name']}`"] for lab in runs[0]["labs"]]
    rows.append(["all, one after another"])
    for run in runs:
        header += [f"time ({run['level']})", f"peak memory ({run['level']})"]
        cells = [(pace.rounded_up(lab["seconds"]), size(lab["peak_bytes"])) for lab in run["labs"]]
        for row, cell in zip(rows, [*cells, (pace.rounded_up(run["seconds"]), peak(run))], strict=True):
            row.extend(cell)
    told = f"Measured with: {where(runs)}."
    workspace = Path(runs[-1]["workspace"])
    if held := sum(path.lstat().st_size for path in workspace.rglob("*") if path.is_file()):
        told += f" The workspace then held {size(held)}."
    return f"{markdown_table(header, rows)}\n\n{told}"


def peak(run: dict[str, Any]) -> str:
    return size(max(lab["peak_bytes"] for lab in run["labs"]))


def draw(workspace: Workspace, picture: Path) -> None:
    """Draws accuracy and size of the variants from their headlines; raises MissingResult if one has none."""
    found = {(m.variant, m.metric): m for m in workspace.ledger.headlines(model=TINY.model) if m.task in ("", TASK)}
    pairs = [[found.get((variant, metric)) for metric in (TINY.main_task.metric, "bytes")] for variant in DRAWN]
    figure, (left, right) = figures.new_axes(1, 2, height=0.55 * len(DRAWN) + 1.1, sharey=True)
    baseline = 0.0
    for place, (variant, (accuracy, weighs)) in enumerate(zip(DRAWN, pairs, strict=True)):
        if accuracy is None or weighs is None:
            raise MissingResult(f"{workspace.root} has no headline for {variant}", fix="run the labs first: make labs")
        value, error, megabytes = accuracy.value, accuracy.stderr or 0.0, weighs.value / 1e6
        baseline = baseline or value
        color = figures.GREY if place == 0 else figures.RED if value < baseline - 0.05 else figures.BLUE
        left.barh(place, value, 0.6, color=color, xerr=error, error_kw={"elinewidth": 1.2})
        fits = value > 0.4 * baseline  # else the label stands beside its bar
        at = (0.02 if fits else value + error + 0.03, place)
        left.annotate(f"{value:.3f} ± {error:.3f}", at, va="center", fontsize=9, color="white" if fits else "black")
        right.barh(place, megabytes, 0.6, color=color)
        right.annotate(f"{megabytes:.1f} MB", (0.2, place), va="center", fontsize=9, color="white")
    left.axvline(baseline, color=figures.GREY, **figures.DASHED)
    left.set_yticks(range(len(DRAWN)), DRAWN)
    left.invert_yaxis()
    left.set_xlabel("accuracy (exact match)")
    right.set_xlabel("weights on disk, MB")
    picture.parent.mkdir(exist_ok=True)
    figure.savefig(picture, dpi=110)


def write_paces(runs: Mapping[Path, dict[str, Any]], output: Path = pace.SHIPPED) -> None:
    """Puts how long cells took in runs, by their reports' files, in the place of older ones of profile and level."""
    known = json.loads(output.read_text(encoding="utf-8"))
    for path, run in runs.items():
        cells = {lab["name"]: pace.cell_seconds(path.parent / lab["notebook"]) for lab in run["labs"]}
        labs = {lab["name"]: {"seconds": lab["seconds"], "cells": cells[lab["name"]]} for lab in run["labs"]}
        about = {"level": run["level"], "date": run["started"][:10], "probe_seconds": run["probe_seconds"]}
        others = [other for other in known.get(run["profile"], []) if other["level"] != run["level"]]
        known[run["profile"]] = [*others, {**about, "labs": labs}]
    write_atomically(output, json.dumps(known, indent=1, sort_keys=True) + "\n")


def stale_paces() -> list[str]:
    """The labs of paces.json of which it knows cells that are not there any more."""
    found = []
    for profile, runs in json.loads(pace.SHIPPED.read_text(encoding="utf-8")).items():
        for lab, known in (item for run in runs for item in run["labs"].items()):
            path = notebooks.LABS / f"{lab}.ipynb"
            cells = notebooks.read(path)["cells"] if path.is_file() else []
            if set(known["cells"]) - {pace.cell_key(notebooks.source(cell)) for cell in cells}:
                found.append(f"{lab} ({profile})")
    return found


def disk_text() -> str:
    """What the labs need on disk with the workbench's model, as `labkit doctor` counts it."""
    model = int(weight_bytes(QWEN_7B, "bf16").total)
    needed = disk_needed(find_labs(notebooks.ROOT / "notebooks"), model)
    return (
        f"On disk the `workbench` profile needs about {size(needed)} for all labs, as `labkit doctor` counts: "
        f"{size(model)} of BF16 weights, the variants that labs make of them, and what a lab holds until its end."
    )


def marks(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name} -->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)


def block(text: str, name: str) -> str:
    """What stands between the marks of that name; raises LabError if there are none."""
    found = marks(name).search(text)
    if not found:
        raise LabError(f"there is no <!-- {name} --> ... <!-- /{name} -->", fix="put the two comments back")
    return found[2].strip("\n")


def with_block(text: str, name: str, content: str) -> str:
    """The text with `content` between the marks of that name."""
    block(text, name)
    return marks(name).sub(lambda match: f"{match[1]}{content}\n{match[3]}", text)


def problems(folder: Path = notebooks.ROOT) -> list[str]:
    """What --check finds in a folder's README.md and INSTRUCTORS.md."""
    text, teaching = ((folder / name).read_text(encoding="utf-8") for name in (README, INSTRUCTORS))
    wanted = {"labs": labs_table(notebooks.lab_paths()), "hardware": hardware_table()}
    found = [f"the table of {name} is stale" for name, content in wanted.items() if block(text, name) != content]
    if not re.search(r"\| `bf16` (\| [\d.]+ ± [\d.]+ )+\| \d+ \|\n(.*\n)+Task `\w+`.* profile", block(text, "figures")):
        found.append("the figures of a run are missing")
    if block(teaching, "disk") != disk_text():
        found.append("what INSTRUCTORS.md says of disks is stale")
    timed = re.findall(r"^\| `(\w+)` \|", block(teaching, "timing"), re.MULTILINE)
    if timed != [path.stem for path in notebooks.lab_paths()]:
        found.append("INSTRUCTORS.md does not have all labs' times")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes or checks; exit code 1 if a check finds something or no run can be read."""
    options = parser("tables", "Write the tables of README.md and INSTRUCTORS.md.")
    options.add_argument("--check", action="store_true", help="write nothing; fail if a table is stale")
    options.add_argument("--folder", type=Path, default=notebooks.ROOT, help="where the two files are")
    args = options.parse_args(arguments)
    if args.check:
        found = [f"{problem}; run `make figures` after `make labs`" for problem in problems(args.folder)]
        print("\n".join(found) or "README.md and INSTRUCTORS.md are current.")
        return 1 if found else 0
    written: dict[str, dict[str, str]] = {
        README: {"labs": labs_table(notebooks.lab_paths()), "hardware": hardware_table()},
        INSTRUCTORS: {"disk": disk_text()},
    }
    code = 0
    try:
        measured = reports(args.report)
        runs = list(measured.values())
        if args.folder == notebooks.ROOT:
            draw(Workspace(Path(runs[-1]["workspace"])), args.folder / PICTURE)
            write_paces(measured)
        written[README]["figures"] = figures_text(runs)
        written[INSTRUCTORS]["timing"] = timing_text(runs)
    except LabError as error:
        print(f"figures are left as they are: {error}", file=sys.stderr)
        code = 1
    for name, contents in written.items():
        text = (args.folder / name).read_text(encoding="utf-8")
        for mark, content in contents.items():
            text = with_block(text, mark, content)
        (args.folder / name).write_text(text, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
