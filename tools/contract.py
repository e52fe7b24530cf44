"""What every lab notebook keeps, as rules: `python -m tools.contract` says what a lab breaks, and where.

Each rule takes a notebook (the JSON object of its file) and its path, and gives back a sentence for every breach. None
executes anything: that a lab runs is `labkit run`'s business.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import labkit
from labkit.errors import UsageError
from labkit.ops.notebooks import parameters_of
from labkit.profiles import Parameters
from tools import links, navigation, notebooks

Notebook = dict[str, Any]
Rule = Callable[[Notebook, Path], list[str]]

LONGEST_CELL = 25
LONGEST_HELPER = 5  # statements of a function in a cell; a longer one belongs in labkit
CHECK_WITHIN = 3  # code cells after a heavy one: a table or a figure may stand between
NEEDED_PARAMETERS = {"profile", "workspace", "model", "data"}
HEADER = {
    "what you will learn": r"you will learn",
    "what you need": r"you need",
    "how long it takes": r"it takes|^\W*time\b",
}
FIRST_LABS, MOST_NAMES = 4, 50  # the labs that everybody does, and how many names of labkit they may use
SHELL = re.compile(r"^\s*([!%].*)", re.MULTILINE)
SECRET = re.compile(
    r"hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|sk-[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*KEY"
)
ABSOLUTE = re.compile(r"""(?<![\w.:/<-])(?:/(?:home|root|work|tmp|opt|usr|mnt|data|var|etc|srv|Users)/|~/|[A-Z]:\\)""")
HEAVY = {"oneshot", "model_free_ptq", "quantizing", "run_script", "served", "put_load"}
ENGINES = {"evaluate", "run_script", "served", "put_load"}  # lab.evaluate checks its scores itself
CHECKS = {"check", "expect", "verify", "exercise"}
FIGURE = re.compile(
    r"(?<![\w.,])(?:\d[\d,]*(?:\.\d+)?|(?:half|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty|sixty|hundred)\b)"
    r"[\s*_]*(?:an? )?(?:[%×]|percent\b|x\b|times\b|tok/s|tokens a second|[kMGT]i?B\b|m?s\b|(?:milli)?seconds?\b|min\b"
    r"|minutes?\b|hours?\b|(?:percentage )?points?\b|nats?\b)"
)
SOURCE = re.compile(r"arXiv|https?://|model card|documentation|\bsource\b")
ALLOWED = {  # lab to phrases with figures that no run measures, each with its reason
    "00_start_here": {"A GPU has 24 GB (24·10⁹ bytes), and 10% of it": "given by the exercise"},
    "03_evaluation": {
        "All intervals are 95% intervals, and we ask for 95% of the baseline: a *margin* of 5%": "chosen by us",
    },
    "04_serving_throughput": {'A figure like "190 tokens a second" means nothing': "an example of no machine"},
    "05_static_fp8_kv_cache": {"A GPU has 6 GB left": "given by the exercise"},
    "06_fp4_weights_lorc": {
        "a perplexity at most 1% higher": "chosen by us",
        "the 95% interval": "chosen by us",
    },
    "08_scale_out": {
        "GPUs of which an engine may use 85%": "given to the function",
        "GPUs of 80 GB": "given by the exercise",
    },
}


def _code(notebook: Notebook) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(place in words, source, cell) of the code cells."""
    for number, cell in enumerate(notebook["cells"], start=1):
        if cell["cell_type"] == "code":
            yield f"cell {number}", notebooks.source(cell), cell


def _parsed(source: str) -> ast.Module:
    """A cell as Python; shell escapes and magics are left out (another rule refuses them)."""
    return ast.parse(SHELL.sub("pass", source))


def _called(tree: ast.AST) -> set[str]:
    """The last names of all calls: `lab.evaluate(...)` is evaluate."""
    names = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return {f.attr if isinstance(f, ast.Attribute) else f.id for f in names if isinstance(f, ast.Attribute | ast.Name)}


def one_title_and_ordered_headings(notebook: Notebook, path: Path) -> list[str]:
    """One H1, first of all; no level is skipped on the way down."""
    text = re.sub(r"^```.*?^```", "", notebooks.prose(notebook), flags=re.MULTILINE | re.DOTALL)
    levels = [len(marks) for marks in re.findall(r"^(#{1,6}) ", text, re.MULTILINE)]
    found = [] if levels.count(1) == 1 and levels[0] == 1 else [f"{levels.count(1)} H1 titles, or it is not the first"]
    return found + [f"a level {b} heading stands right under level {a}" for a, b in pairwise(levels) if b > a + 1]


def header_says_what_is_learnt_needed_and_how_long(notebook: Notebook, path: Path) -> list[str]:
    """All in the first cell; the time between the marks that `python -m tools.navigation` fills."""
    header = notebooks.source(notebook["cells"][0])
    found = [
        f"the header does not say {what}" for what, words in HEADER.items() if not re.search(words, header, re.I | re.M)
    ]
    if not navigation.MEASURED.fullmatch(navigation.measured_time(notebook) or ""):
        found.append("the header has no measured time between <!-- time --> and <!-- /time -->")
    return found


def one_parameters_cell_of_plain_literals(notebook: Notebook, path: Path) -> list[str]:
    """The four parameters that every lab has, empty; others that labkit knows; derived values in the next code cell."""
    try:
        parameters = parameters_of(notebook)
    except UsageError as error:
        return [error.what]
    found = [f"no parameter {name} with the default ''" for name in NEEDED_PARAMETERS if parameters.get(name) != ""]
    found += [f"labkit knows no parameter {name}" for name in parameters.keys() - {f.name for f in fields(Parameters)}]
    code = list(_code(notebook))
    place = next((i for i, (_, _, cell) in enumerate(code) if "parameters" in notebooks.tags(cell)), None)
    if place is not None and "open_lab" not in (_called(_parsed(code[place + 1][1])) if place + 1 < len(code) else ()):
        found.append("the code cell after the parameters does not call open_lab")
    return found


def nothing_executed_is_saved(notebook: Notebook, path: Path) -> list[str]:
    """No outputs, counts, widget state, nor papermill's and JupyterLab's notes of a run."""
    kept = [(place, "outputs") for place, _, cell in _code(notebook) if cell["outputs"]]
    kept += [(place, "an execution count") for place, _, cell in _code(notebook) if cell["execution_count"]]
    for part in (notebook, *notebook["cells"]):
        kept += [("metadata", key) for key in part["metadata"].keys() & {"widgets", "papermill", "execution"}]
    return [f"{place} has {what}" for place, what in kept]


def no_shell_no_magic_no_question(notebook: Notebook, path: Path) -> list[str]:
    """No `!`, no `%`, no input(): a headless run would hang, or install something."""
    found = []
    for place, source, cell in _code(notebook):
        found += [f"{place}: {line}" for line in SHELL.findall(source)]
        if {"input", "getpass", "system", "get_ipython"} & _called(_parsed(source)):
            found.append(f"{place} asks a question or opens a shell")
        if "raises-exception" in notebooks.tags(cell):
            found.append(f"{place} is tagged raises-exception")
    return found


def nothing_unsafe_or_private(notebook: Notebook, path: Path) -> list[str]:
    """No remote code, no unverified connection, no secret, no absolute path, in any cell."""
    found = []
    for number, cell in enumerate(notebook["cells"], start=1):
        source = notebooks.source(cell)
        for pattern in (r"trust_remote_code\s*=\s*True", r"verify\s*=\s*False"):
            found += [f"cell {number}: {match}" for match in re.findall(pattern, source)]
        found += [f"cell {number} holds what looks like a secret" for _ in SECRET.findall(source)]
        found += [f"cell {number} holds an absolute path: {match}" for match in ABSOLUTE.findall(source)]
    return found


def short_cells_without_classes(notebook: Notebook, path: Path) -> list[str]:
    """25 lines at most; no class, no long helper."""
    found = []
    for place, source, _ in _code(notebook):
        if len(source.splitlines()) > LONGEST_CELL:
            found.append(f"{place} has {len(source.splitlines())} lines; {LONGEST_CELL} at most")
        for node in ast.walk(_parsed(source)):
            if isinstance(node, ast.ClassDef):
                found.append(f"{place} defines the class {node.name}")
            statements = sum(isinstance(child, ast.stmt) for child in ast.walk(node)) - 1
            if isinstance(node, ast.FunctionDef) and statements > LONGEST_HELPER:
                found.append(f"{place} defines {node.name}; a helper of more than a few lines belongs in labkit")
    return found


def heavy_cells_are_followed_by_a_check(notebook: Notebook, path: Path) -> list[str]:
    """A check in the same cell, or in one of the next code cells before the next heavy one."""
    calls = [(place, _called(_parsed(source))) for place, source, _ in _code(notebook)]
    found = []
    for i, (place, called) in enumerate(calls):
        after = list(takewhile(lambda later: not HEAVY & later, (later for _, later in calls[i + 1 :])))
        if HEAVY & called and not CHECKS & called.union(*after[:CHECK_WITHIN]):
            found.append(f"{place} calls {', '.join(sorted(HEAVY & called))}, and no check follows")
    return found


def memory_is_back_before_an_engine_starts(notebook: Notebook, path: Path) -> list[str]:
    """After a quantize `lab.verify`, which checks that memory came back; then an engine, another quantize, the end."""
    found, holding = [], ""
    for place, source, _ in _code(notebook):
        called = _called(_parsed(source))
        if holding and (ENGINES | {"quantizing", "end"}) & called:
            found.append(f"{place} goes on before lab.verify judged {holding}")
        if {"oneshot", "quantizing"} & called:
            holding = place
        if "verify" in called:
            holding = ""
    return found


def last_cell_is_the_end_mark(notebook: Notebook, path: Path) -> list[str]:
    """`lab.end()`, alone, once; it says what the lab still holds."""
    alone = notebooks.source(notebook["cells"][-1]).strip() == "lab.end()"
    count = sum("end" in _called(_parsed(source)) for _, source, _ in _code(notebook))
    return [] if alone and count == 1 else ["the last cell is not `lab.end()`, alone and once"]


def figures_come_with_their_description(notebook: Notebook, path: Path) -> list[str]:
    """Figures are labkit's, which carry one, and shown by lab.show, which prints it; nothing is drawn beside that."""
    found = []
    for place, source, _ in _code(notebook):
        if re.search(r"^\s*(import|from) matplotlib\b", source, re.MULTILINE):
            found.append(f"{place} draws with matplotlib itself; use labkit's figures")
        if re.search(r"\bfigures\.\w+\(", source) and "show" not in _called(_parsed(source)):
            found.append(f"{place} makes a figure and does not give it to lab.show")
    return found


def links_resolve(notebook: Notebook, path: Path) -> list[str]:
    """Relative links lead to files that are there, and to headings that are in them."""
    return links.broken(notebooks.prose(notebook), path)


def navigation_is_generated(notebook: Notebook, path: Path) -> list[str]:
    """The line is what `python -m tools.navigation` writes for this lab among its neighbours."""
    paths = notebooks.lab_paths(path.parent)
    cell = navigation.navigation_cell(notebook)
    wanted = navigation.navigation_line(paths, [p.name for p in paths].index(path.name))
    return [] if cell and notebooks.source(cell) == wanted else ["the navigation line is missing or stale"]


def exercises_have_a_stub_a_check_and_a_hidden_solution(notebook: Notebook, path: Path) -> list[str]:
    """At least two; each stub is followed by `lab.exercise` and by a cell tagged solution whose source is collapsed."""
    code = list(_code(notebook))
    stubs = [i for i, (_, _, cell) in enumerate(code) if "exercise" in notebooks.tags(cell)]
    found = [] if len(stubs) >= 2 else [f"{len(stubs)} exercises; two at least"]
    for i, end in zip(stubs, [*stubs[1:], len(code)], strict=True):
        place, source, _ = code[i]
        solution = next((cell for _, _, cell in code[i:end] if "solution" in notebooks.tags(cell)), {"metadata": {}})
        if "..." not in source:
            found.append(f"{place}: the exercise has no stub (...)")
        if not any("exercise" in _called(_parsed(after)) for _, after, _ in code[i:end]):
            found.append(f"{place}: no lab.exercise follows the stub")
        if not solution["metadata"].get("jupyter", {}).get("source_hidden"):
            found.append(f"{place}: no solution with a collapsed source follows")
    return found


def no_measured_figure_is_typed_into_text(notebook: Notebook, path: Path) -> list[str]:
    """Text has no figure with a unit, but for *Published* ones with their source, and those in ALLOWED."""
    cells = {i: notebooks.source(c) for i, c in enumerate(notebook["cells"], 1) if c["cell_type"] == "markdown"}
    allowed = ALLOWED.get(path.stem, {})
    found = [
        f"{phrase!r} is allowed and not there any more" for phrase in allowed if phrase not in "\n".join(cells.values())
    ]
    for number, text in cells.items():
        for phrase in allowed:
            text = text.replace(phrase, " ")
        text = re.sub(r"```.*?```|`[^`\n]*`", " ", navigation.TIME.sub(" ", text), flags=re.DOTALL)
        for block in re.split(r"\n\n(?![|-])", text):  # a paragraph with the table or the list under it
            if not ("*published*" in block.lower() and SOURCE.search(block)):
                found += [f"cell {number} has typed the figure {figure!r}" for figure in FIGURE.findall(block)]
    return found


def names_of_labkit(notebook: Notebook) -> set[str]:
    """The names of labkit that a lab's reader meets: what stands behind `lab`, `labkit` or one of its modules, or is
    imported from there. Modules don't count, nor what is read off a result (`recovery.ratio`).
    """
    found, modules = set(), set(labkit.__all__) - {"LabError", "Request", "open_lab"}
    for node in (node for _, source, _ in _code(notebook) for node in ast.walk(_parsed(source))):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "labkit":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute):
            behind = ast.unparse(node.value).split(".")[-1]
            if behind in {"lab", "labkit", *modules}:
                found.add(f"lab.{node.attr}" if behind == "lab" else node.attr)
    return found - modules


RULES: tuple[Rule, ...] = (
    *(one_title_and_ordered_headings, header_says_what_is_learnt_needed_and_how_long, links_resolve),
    *(one_parameters_cell_of_plain_literals, nothing_executed_is_saved, no_shell_no_magic_no_question),
    *(nothing_unsafe_or_private, short_cells_without_classes, heavy_cells_are_followed_by_a_check),
    *(memory_is_back_before_an_engine_starts, last_cell_is_the_end_mark, figures_come_with_their_description),
    *(navigation_is_generated, exercises_have_a_stub_a_check_and_a_hidden_solution),
    no_measured_figure_is_typed_into_text,
)


def breaches() -> list[str]:
    """A sentence for whatever a lab breaks."""
    labs = {path: notebooks.read(path) for path in notebooks.lab_paths()}
    found = [
        f"{path.name}: {breach} ({rule.__name__.replace('_', ' ')})"
        for path, notebook in labs.items()
        for rule in RULES
        for breach in rule(notebook, path)
    ]
    names = set().union(*(names_of_labkit(notebook) for notebook in list(labs.values())[:FIRST_LABS]))
    if len(names) > MOST_NAMES:
        found.append(
            f"the first {FIRST_LABS} labs use {len(names)} names of labkit, {MOST_NAMES} at most: {sorted(names)}"
        )
    return found


def main() -> int:
    """Prints every breach; exit code 1 if there is one."""
    found = breaches()
    print("\n".join(found) or "Every lab keeps the contract.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
