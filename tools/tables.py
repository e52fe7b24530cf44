"""Writes what is generated in README.md and INSTRUCTORS.md: labs, hardware, and the figures and times of runs.

    python -m tools.tables              all of it, figures and times from the newest run's report.json
    python -m tools.tables --report F   from that report, and from more, a column each: --report F --report G
    python -m tools.tables --check      writes nothing; fails if a table is not what it would become

Each stands between two HTML comments: <!-- labs --> ... <!-- /labs -->, and so on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.hardware.table import HARDWARE, SCHEMES, TABLE
from labkit.memory.config import QWEN_7B
from labkit.ops.notebooks import find_labs, read_lab
from labkit.ops.outlook import bf16_bytes, disk_needed
from labkit.ops.text import number, size
from labkit.pace import rounded_up
from tools import navigation, notebooks
from tools.run_report import parser, reports, where

README, INSTRUCTORS = "README.md", "INSTRUCTORS.md"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def labs_table(paths: Sequence[Path]) -> str:
    """A line for each lab: its title as a link, the labs before it, its measured time."""
    rows = []
    for path in paths:
        lab = read_lab(path)
        time = (navigation.measured_time(notebooks.read(path)) or "").split("; ")[0]
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
    took = ", ".join(f"{rounded_up(run['seconds'])} and at most {peak(run)} of memory ({run['level']})" for run in runs)
    return f"{markdown_table(header, rows)}\n\nTask `{task}`; all labs took {took}; {where(runs)}."


def timing_text(runs: Sequence[dict[str, Any]]) -> str:
    """How long each lab of each run took, its peak memory, and what they left on disk."""
    header, rows = ["lab"], [[f"`{lab['name']}`"] for lab in runs[0]["labs"]]
    rows.append(["all, one after another"])
    for run in runs:
        header += [f"time ({run['level']})", f"peak memory ({run['level']})"]
        cells = [(rounded_up(lab["seconds"]), size(lab["peak_bytes"])) for lab in run["labs"]]
        for row, cell in zip(rows, [*cells, (rounded_up(run["seconds"]), peak(run))], strict=True):
            row.extend(cell)
    told = f"Measured with: {where(runs)}."
    workspace = Path(runs[-1]["workspace"])
    if held := sum(path.lstat().st_size for path in workspace.rglob("*") if path.is_file()):
        told += f" The workspace then held {size(held)}."
    return f"{markdown_table(header, rows)}\n\n{told}"


def peak(run: dict[str, Any]) -> str:
    return size(max(lab["peak_bytes"] for lab in run["labs"]))


def disk_text() -> str:
    """What the labs need on disk with the workbench's model, as `labkit doctor` counts it."""
    model = bf16_bytes(QWEN_7B)
    needed = disk_needed(find_labs(notebooks.ROOT / "notebooks"), model)
    return (
        f"On disk the `workbench` profile needs about {size(needed)} for all labs, as `labkit doctor` counts: "
        f"{size(model)} of BF16 weights, the variants that labs make of them, and what a lab holds until its end."
    )


def block(text: str, name: str) -> str:
    """What stands between the marks of that name; raises LabError if there are none."""
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    if not found:
        raise LabError(f"there is no <!-- {name} --> ... <!-- /{name} -->", fix="put the two comments back")
    return found[1].strip("\n")


def with_block(text: str, name: str, content: str) -> str:
    """The text with `content` between the marks of that name."""
    block(text, name)
    marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    return marks.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


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
    options = parser("tables", "Write README.md's tables.", check="a table is stale")
    options.add_argument("--folder", type=Path, default=notebooks.ROOT, help="where the two files are")
    args = options.parse_args(arguments)
    text, teaching = ((args.folder / name).read_text(encoding="utf-8") for name in (README, INSTRUCTORS))
    if args.check:
        found = problems(args.folder)
        print(
            "\n".join(f"{problem}; run `make figures` after `make labs`" for problem in found)
            or "README.md and INSTRUCTORS.md are current."
        )
        return 1 if found else 0
    text = with_block(text, "labs", labs_table(notebooks.lab_paths()))
    text = with_block(text, "hardware", hardware_table())
    teaching = with_block(teaching, "disk", disk_text())
    code = 0
    try:
        runs = list(reports(args.report).values())
        text = with_block(text, "figures", figures_text(runs))
        teaching = with_block(teaching, "timing", timing_text(runs))
    except LabError as error:
        print(f"figures are left as they are: {error}", file=sys.stderr)
        code = 1
    (args.folder / README).write_text(text, encoding="utf-8")
    (args.folder / INSTRUCTORS).write_text(teaching, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
