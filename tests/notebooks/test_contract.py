"""Every lab keeps the notebook contract, and every rule of it bites.

A rule is tested twice: on all labs, and on a notebook made here that breaks it and nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tools import contract, navigation, notebooks
from tools.contract import Notebook, Rule

LABS = notebooks.lab_paths()
FOUR = 'profile = ""\nworkspace = ""\nmodel = ""\ndata = ""\n'
HEADER = """# A lab

**You will learn** a thing. **You need** nothing.
**It takes** <!-- time -->2 min (avx2), 40 s (bf16); `tiny` profile, 2 cores, 2026-11-29<!-- /time -->
"""


def markdown(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": "m", "metadata": {}, "source": text}


def code(text: str, *tags: str, **metadata: Any) -> dict[str, Any]:
    about = {**metadata, **({"tags": list(tags)} if tags else {})}
    return {
        "cell_type": "code",
        "execution_count": None,
        "id": "c",
        "metadata": about,
        "outputs": [],
        "source": text,
    }


def exercise(number: int) -> list[dict[str, Any]]:
    return [
        code(f"answer_{number} = ...", "exercise"),
        code(f"lab.exercise(checks.answer_is(answer_{number}, 2, 0.1, 'one and one'))"),
        code(f"answer_{number} = 2", "solution", jupyter={"source_hidden": True}),
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the notebook under test would stand: alone in its folder, under a README with the index."""
    (tmp_path / "README.md").write_text("# labkit\n\n## The labs\n")
    (tmp_path / "notebooks").mkdir()
    path = tmp_path / "notebooks" / "00_a.ipynb"
    path.write_text(notebooks.dumps({"cells": [markdown("# A lab")]}))
    return path


@pytest.fixture
def good(path: Path) -> Notebook:
    """A small notebook that keeps every rule."""
    return {
        "cells": [
            markdown(HEADER),
            markdown(navigation.navigation_line([path], 0)),
            code(FOUR + "limit = 0", "parameters"),
            code('lab = open_lab("00_a", profile=profile)'),
            markdown("## A part\n\n### A smaller part\n\nSee [the labs](../README.md#the-labs) and [below](#A-part)."),
            code('with lab.quantizing("fp8-dynamic") as job:\n    oneshot(model=job.load())'),
            code("lab.check(checks.memory_came_back(1, 1))"),
            code("done = lab.evaluate(requests)\nlab.check(checks.holds(done))"),
            code('lab.show(figures.bars(["a"], {"b": [1]}, "bytes", "One bar."))'),
            *exercise(1),
            *exercise(2),
            code("lab.end()"),
        ],
        "metadata": {},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def breaches(notebook: Notebook, path: Path) -> dict[str, list[str]]:
    """Rule to what breaks it, of those that are broken."""
    found = {rule.__name__: rule(copy.deepcopy(notebook), path) for rule in contract.RULES}
    return {name: problems for name, problems in found.items() if problems}


def replacing(place: int, cell: dict[str, Any]) -> Callable[[Notebook], None]:
    return lambda notebook: notebook["cells"].__setitem__(place, cell)


def inserting(cell: dict[str, Any], place: int = 4) -> Callable[[Notebook], None]:
    return lambda notebook: notebook["cells"].insert(place, cell)


def removing(place: int) -> Callable[[Notebook], None]:
    return lambda notebook: notebook["cells"].pop(place)


def lab_id(lab: Path) -> str:
    return lab.stem


# --- the labs --------------------------------------------------------------------------------------------------------


def test_there_are_labs_to_hold_to_the_contract() -> None:
    assert [lab.stem for lab in LABS][:4] == [
        "00_start_here",
        "01_fp8_rtn",
        "02_int8_smoothquant_gptq",
        "03_evaluation",
    ]


@pytest.mark.parametrize("lab", LABS, ids=lab_id)
@pytest.mark.parametrize("rule", contract.RULES, ids=lambda rule: rule.__name__)
def test_every_lab_keeps_the_rule(rule: Rule, lab: Path) -> None:
    assert rule(notebooks.read(lab), lab) == []


@pytest.mark.parametrize("lab", LABS, ids=lab_id)
def test_a_lab_is_a_valid_notebook_written_as_jupyter_writes_it(lab: Path) -> None:
    """So that opening and saving it changes nothing in git."""
    notebook = nbformat.read(lab, as_version=4)
    nbformat.validate(notebook)
    assert lab.read_text() == nbformat.writes(notebook) + "\n"


# --- the rules -------------------------------------------------------------------------------------------------------


def test_the_notebook_that_the_counter_examples_spoil_keeps_every_rule(good: Notebook, path: Path) -> None:
    assert breaches(good, path) == {}


TITLE = contract.one_title_and_ordered_headings
HEADS = contract.header_says_what_is_learnt_needed_and_how_long
PARAMETERS = contract.one_parameters_cell_of_plain_literals
SAVED = contract.nothing_executed_is_saved
SHELL = contract.no_shell_no_magic_no_question
UNSAFE = contract.nothing_unsafe_or_private
SHORT = contract.short_cells_without_classes
HEAVY = contract.heavy_cells_are_followed_by_a_check
MEMORY = contract.memory_is_back_before_an_engine_starts
END = contract.last_cell_is_the_end_mark
FIGURES = contract.figures_come_with_their_description
LINKS = contract.links_resolve
NAVIGATION = contract.navigation_is_generated
EXERCISES = contract.exercises_have_a_stub_a_check_and_a_hidden_solution
TYPED = contract.no_measured_figure_is_typed_into_text
SPOILT: list[tuple[Rule, str, Callable[[Notebook], object]]] = [
    (TITLE, "two titles", inserting(markdown("# Another"))),
    (TITLE, "a skipped level", inserting(markdown("## Part\n\n#### Too small"))),
    (HEADS, "no needs", replacing(0, markdown(HEADER.replace("need", "")))),
    (HEADS, "a typed time", replacing(0, markdown(HEADER.replace("40 s", "soon")))),
    (PARAMETERS, "two such cells", inserting(code('limit = ""', "parameters"))),
    (PARAMETERS, "a derived value", replacing(2, code("model = profile + '-x'", "parameters"))),
    (PARAMETERS, "no such cell", replacing(2, code('profile = ""'))),
    (PARAMETERS, "a name that labkit lacks", replacing(2, code(FOUR + 'modle = ""', "parameters"))),
    (PARAMETERS, "no open_lab after it", replacing(3, code("lab = 1"))),
    (SAVED, "an output", replacing(3, code("open_lab()") | {"outputs": [{"output_type": "stream"}]})),
    (SAVED, "an execution count", replacing(3, code("open_lab()") | {"execution_count": 3})),
    (SAVED, "widget state", lambda notebook: notebook["metadata"].update(widgets={})),
    (SAVED, "papermill's notes", inserting(code("x = 1", papermill={"duration": 1}))),
    (SHELL, "a shell escape", inserting(code("!nvidia-smi"))),
    (SHELL, "an install", inserting(code("%pip install torch"))),
    (SHELL, "a question", inserting(code('name = input("name?")'))),
    (SHELL, "an expected error", inserting(code("1 / 0", "raises-exception"))),
    (UNSAFE, "remote code", inserting(code("load(trust_remote_code=True)"))),
    (UNSAFE, "an unverified connection", inserting(code("get(verify = False)"))),
    (UNSAFE, "a token", inserting(code('token = "hf_' + "a1" * 12 + '"'))),
    (UNSAFE, "a path", inserting(code('folder = "/home/someone/models"'))),
    (UNSAFE, "a path in prose", inserting(markdown("Look at `~/models`."))),
    (SHORT, "26 lines", inserting(code("\n".join(f"x{i} = {i}" for i in range(26))))),
    (SHORT, "a class", inserting(code("class Helper:\n    pass"))),
    (SHORT, "a long helper", inserting(code("def f():\n" + "    x = 1\n" * 6 + "    return x"))),
    (
        HEAVY,
        "no check",
        lambda notebook: notebook["cells"].__setitem__(slice(7, 9), [code("lab.evaluate(requests)")] * 2),
    ),
    (MEMORY, "an engine too early", replacing(6, code("lab.check(checks.gptq_ran([], 1))"))),
    (END, "a cell after it", lambda notebook: notebook["cells"].append(markdown("Bye."))),
    (END, "none", removing(-1)),
    (END, "one in the middle too", inserting(code("lab.end()"))),
    (FIGURES, "own drawing", inserting(code("import matplotlib.pyplot as plt"))),
    (FIGURES, "a figure without lab.show", replacing(8, code("figures.bars([], {}, '', '').drawing"))),
    (LINKS, "no such file", inserting(markdown("[next](09_nothing.ipynb)"))),
    (LINKS, "no such heading", inserting(markdown("[there](../README.md#nowhere)"))),
    (NAVIGATION, "a typed line", replacing(1, markdown("[index](../README.md)"))),
    (EXERCISES, "one exercise", lambda notebook: notebook["cells"].__delitem__(slice(9, 12))),
    (EXERCISES, "an answer in the stub", replacing(9, code("answer_1 = 2", "exercise"))),
    (EXERCISES, "a solution in plain sight", replacing(11, code("answer_1 = 2", "solution"))),
    (EXERCISES, "no check", replacing(10, code("print(answer_1)"))),
    (TYPED, "a share", inserting(markdown("Each weight moves by up to 6%."))),
    (TYPED, "a factor in words", inserting(markdown("INT8 is two times as fast."))),
    (TYPED, "a time in a folded answer", inserting(markdown("<details>\n\nIt took **30** s.\n\n</details>"))),
    (TYPED, "a rate beside code", inserting(markdown("`put_load` reached 1,370 tok/s."))),
    (TYPED, "published, without a source", inserting(markdown("*Published*: up to 1.6×."))),
    (TYPED, "in the paragraph after", inserting(markdown("*Published*: 1.6× (vLLM documentation).\n\nHere 2.1×."))),
]


@pytest.mark.parametrize(
    ("rule", "what", "spoil"), SPOILT, ids=[f"{rule.__name__}: {what}" for rule, what, _ in SPOILT]
)
def test_a_notebook_that_breaks_the_rule_is_noticed_by_it(
    rule: Rule, what: str, spoil: Callable[[Notebook], object], good: Notebook, path: Path
) -> None:
    spoil(good)
    assert rule(good, path) != [], what


def test_every_rule_has_a_counter_example() -> None:
    assert {rule for rule, _, _ in SPOILT} == set(contract.RULES)


@pytest.mark.parametrize(
    "text",
    [
        "*Published*, not measured here (vLLM documentation):\n\n| speed |\n|---|\n| 1.6× |",
        "*Published*: Yao et al., arXiv 2303.08302, 3 points.",
        "`sleep 3 s` and 448, E4M3's largest; 3·2 tensors, 4 bits, the A100s, 2XᵀX.",
        "```\n12 MB\n```",
    ],
)
def test_published_figures_code_and_numbers_without_a_unit_may_stand_in_text(
    good: Notebook, path: Path, text: str
) -> None:
    inserting(markdown(text))(good)
    assert breaches(good, path) == {}


def test_a_definition_is_let_through_by_its_phrase_and_a_phrase_that_is_gone_is_noticed(
    good: Notebook, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(contract.ALLOWED, "00_a", {"95% intervals": "what we ask for"})
    assert TYPED(good, path) == ["'95% intervals' is allowed and not there any more"]
    inserting(markdown("All are 95% intervals."))(good)
    assert TYPED(good, path) == []
    inserting(markdown("All are 95% intervals, and 94% were kept."))(good)
    assert TYPED(good, path) == ["cell 5 has typed the figure '94%'"]


def test_what_is_allowed_are_figures_of_labs_that_are_there_each_with_its_reason() -> None:
    assert contract.ALLOWED.keys() <= {lab.stem for lab in LABS}
    for phrases in contract.ALLOWED.values():
        assert all(contract.FIGURE.search(phrase) and reason for phrase, reason in phrases.items())


# --- the generated lines ---------------------------------------------------------------------------------------------


@pytest.fixture
def two_labs(path: Path, good: Notebook) -> list[Path]:
    """Two labs as an author leaves them: no navigation yet, and an empty place for the time."""
    good["cells"].pop(1)
    notebooks.set_source(good["cells"][0], navigation.TIME.sub("<!-- time --><!-- /time -->", HEADER))
    other = path.with_name("01_b.ipynb")
    path.write_text(notebooks.dumps(good))
    notebooks.set_source(good["cells"][0], notebooks.source(good["cells"][0]).replace("# A lab", "# B lab"))
    other.write_text(notebooks.dumps(good))
    return [path, other]


def report(folder: Path, **changes: Any) -> Path:
    lab = {"verdict": "passed", "reason": "", "peak_bytes": 1}
    labs = [{"name": "00_a", "seconds": 41.2, **lab}, {"name": "01_b", "seconds": 130.0, **lab}]
    run = {"profile": "tiny", "machine": "A, 2 cores", "level": "avx2", "started": "2026-11-29T08:00:00"}
    file = folder / f"report-{len(list(folder.iterdir()))}.json"
    file.write_text(notebooks.dumps({**run, "complete": True, "labs": labs, **changes}))
    return file


def test_the_command_writes_links_and_measured_times_and_then_finds_nothing_to_do(
    two_labs: list[Path], tmp_path: Path
) -> None:
    folder = str(two_labs[0].parent)
    assert navigation.main(["--check", "--notebooks", folder]) == 1
    assert navigation.main(["--notebooks", folder, "--report", str(report(tmp_path))]) == 0
    first, second = map(notebooks.read, two_labs)
    assert notebooks.source(first["cells"][1]).endswith("\n[All labs](../README.md#the-labs) | [B lab →](01_b.ipynb)")
    assert notebooks.source(second["cells"][1]).endswith("\n[← A lab](00_a.ipynb) | [All labs](../README.md#the-labs)")
    assert navigation.measured_time(first) == "50 s (avx2); `tiny` profile, 2 cores, 2026-11-29"
    assert navigation.measured_time(second) == "3 min (avx2); `tiny` profile, 2 cores, 2026-11-29"
    written = [path.read_bytes() for path in two_labs]
    assert navigation.main(["--check", "--notebooks", folder]) == 0
    assert navigation.main(["--notebooks", folder, "--report", str(report(tmp_path))]) == 0
    assert [path.read_bytes() for path in two_labs] == written


def test_times_of_several_runs_stand_side_by_side_each_with_its_level_and_date(
    two_labs: list[Path], tmp_path: Path
) -> None:
    folder, slow = str(two_labs[0].parent), str(report(tmp_path))
    labs = [{"name": name, "seconds": 7.0, "verdict": "passed", "peak_bytes": 1} for name in ("00_a", "01_b")]
    fast = str(report(tmp_path, level="bf16", started="2026-11-30T08:00:00", labs=labs))
    assert navigation.main(["--notebooks", folder, "--report", slow, "--report", fast]) == 0
    first, second = (navigation.measured_time(notebooks.read(path)) for path in two_labs)
    assert first == "50 s (avx2), 10 s (bf16); `tiny` profile, 2 cores, 2026-11-29 and 2026-11-30"
    assert second == "3 min (avx2), 10 s (bf16); `tiny` profile, 2 cores, 2026-11-29 and 2026-11-30"
    assert navigation.main(["--check", "--notebooks", folder]) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"complete": False},
        {"labs": [{"name": "00_a", "seconds": 1, "verdict": "failed", "reason": "x", "peak_bytes": 1}]},
        {"labs": [{"name": "00_a", "seconds": 0, "verdict": "passed", "reason": "unchanged", "unchanged": True}]},
        {"jobs": 2},
    ],
)
def test_times_of_a_run_that_did_not_pass_one_by_one_are_never_written(
    two_labs: list[Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder, bad = str(two_labs[0].parent), str(report(tmp_path, **changes))
    assert navigation.main(["--notebooks", folder, "--report", bad]) == 1
    assert navigation.measured_time(notebooks.read(two_labs[0])) == ""
