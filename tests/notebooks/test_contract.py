"""Every lab keeps the notebook contract, and every rule of it bites: on a notebook that breaks it and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tools import contract, navigation, notebooks
from tools.contract import Notebook, Rule

FOUR = 'profile = ""\nworkspace = ""\nmodel = ""\ndata = ""\n'
HEADER = """# A lab

**You will learn** a thing. **You need** nothing.
**It takes** <!-- time -->2 min (avx2), 40 s (bf16); `tiny` profile, 2 cores, 2026-11-29<!-- /time -->
"""


def markdown(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "id": "m", "metadata": {}, "source": text}


def code(text: str, *tags: str, **metadata: Any) -> dict[str, Any]:
    about = {**metadata, **({"tags": list(tags)} if tags else {})}
    return {"cell_type": "code", "execution_count": None, "id": "c", "metadata": about, "outputs": [], "source": text}


def exercise(number: int) -> list[dict[str, Any]]:
    return [
        code(f"answer_{number} = ...", "exercise"),
        code(f"lab.exercise(answer_{number}, 2, 'one and one')"),
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
    cells = [
        markdown(HEADER),
        markdown(navigation.navigation_line([path], 0)),
        code(FOUR + "limit = 0", "parameters"),
        code('lab = open_lab("00_a", profile=profile)'),
        markdown("## A part\n\n### A smaller part\n\nSee [the labs](../README.md#the-labs) and [below](#A-part)."),
        code('with lab.quantizing("fp8-dynamic") as job:\n    oneshot(model=job.load())'),
        code('lab.verify(job, "fp8-w8a8-dynamic")'),
        code("said = lab.run_script(script, folder)\nlab.check(bool(said), 'the answers', '', '')"),
        code('lab.show(figures.bars(["a"], {"b": [1]}, "bytes", "One bar."))'),
        *exercise(1),
        *exercise(2),
        code("lab.end()"),
    ]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def breaches(notebook: Notebook, path: Path) -> dict[str, list[str]]:
    """Rule to what breaks it, of those that are broken."""
    found = {rule.__name__: rule(copy.deepcopy(notebook), path) for rule in contract.RULES}
    return {name: problems for name, problems in found.items() if problems}


Spoil = Callable[[Notebook], object]


def replacing(place: int, cell: dict[str, Any]) -> Spoil:
    return lambda notebook: notebook["cells"].__setitem__(place, cell)


def inserting(cell: dict[str, Any] | str, place: int = 4) -> Spoil:
    return lambda notebook: notebook["cells"].insert(place, code(cell) if isinstance(cell, str) else cell)


def said(text: str) -> Spoil:
    return inserting(markdown(text))


# --- the labs ---------------------------------------------------------------------------------------------------------


def test_every_lab_keeps_every_rule_and_is_written_as_jupyter_writes_it() -> None:
    """So that opening and saving it changes nothing in git."""
    assert contract.breaches() == []
    labs = notebooks.lab_paths()
    assert [lab.stem[:2] for lab in labs][: contract.FIRST_LABS] == ["00", "01", "02", "03"]
    for lab in labs:
        notebook = nbformat.read(lab, as_version=4)
        nbformat.validate(notebook)
        assert lab.read_text() == nbformat.writes(notebook) + "\n", lab.name


def test_the_names_of_labkit_in_a_lab_are_counted_and_neither_modules_nor_results() -> None:
    cells = ["from labkit import figures, Request", "import labkit\nlabkit.open_lab('x')", "lab.check(r.ratio > 1)"]
    cells += ["figures.bars(lab.profile.seed)", "labkit.memory.weight_bytes(lab.load)", "from labkit.serve import Load"]
    found = contract.names_of_labkit({"cells": [code(cell) for cell in cells]})
    assert found == {"Request", "open_lab", "lab.check", "bars", "lab.profile", "weight_bytes", "lab.load", "Load"}


# --- the rules --------------------------------------------------------------------------------------------------------


def test_the_notebook_that_the_counter_examples_spoil_keeps_every_rule(good: Notebook, path: Path) -> None:
    assert breaches(good, path) == {}


SPOILT: dict[Rule, list[Spoil]] = {
    contract.one_title_and_ordered_headings: [said("# Another"), said("## Part\n\n#### A skipped level")],
    contract.header_says_what_is_learnt_needed_and_how_long: [
        replacing(0, markdown(HEADER.replace("need", ""))),
        replacing(0, markdown(HEADER.replace("40 s", "soon"))),
    ],
    contract.one_parameters_cell_of_plain_literals: [
        inserting(code('limit = ""', "parameters")),
        replacing(2, code("model = profile + '-x'", "parameters")),
        replacing(2, code('profile = ""')),
        replacing(2, code(FOUR + 'modle = ""', "parameters")),
        replacing(3, code("lab = 1")),
    ],
    contract.nothing_executed_is_saved: [
        replacing(3, code("open_lab()") | {"outputs": [{"output_type": "stream"}]}),
        replacing(3, code("open_lab()") | {"execution_count": 3}),
        lambda notebook: notebook["metadata"].update(widgets={}),
        inserting(code("x = 1", papermill={"duration": 1})),
    ],
    contract.no_shell_no_magic_no_question: [
        *map(inserting, ("!nvidia-smi", "%pip install torch", 'name = input("name?")')),
        inserting(code("1 / 0", "raises-exception")),
    ],
    contract.nothing_unsafe_or_private: [
        *map(inserting, ("load(trust_remote_code=True)", "get(verify = False)", 'folder = "/home/someone/models"')),
        inserting('token = "hf_' + "a1" * 12 + '"'),
        said("Look at `~/models`."),
    ],
    contract.short_cells_without_classes: [
        inserting("\n".join(f"x{i} = {i}" for i in range(26))),
        inserting("class Helper:\n    pass"),
        inserting("def f():\n" + "    x = 1\n" * 6 + "    return x"),
    ],
    contract.heavy_cells_are_followed_by_a_check: [
        lambda notebook: notebook["cells"].__setitem__(slice(7, 9), [code("lab.run_script(script, folder)")] * 2)
    ],
    contract.memory_is_back_before_an_engine_starts: [replacing(6, code("lab.check(True, 1, 2, 3)"))],
    contract.last_cell_is_the_end_mark: [
        lambda notebook: notebook["cells"].append(markdown("Bye.")),
        lambda notebook: notebook["cells"].pop(),
        inserting("lab.end()"),
    ],
    contract.figures_come_with_their_description: [
        inserting("import matplotlib.pyplot as plt"),
        replacing(8, code("figures.bars([], {}, '', '').drawing")),
    ],
    contract.links_resolve: [said("[next](09_nothing.ipynb)"), said("[there](../README.md#nowhere)")],
    contract.navigation_is_generated: [replacing(1, markdown("[index](../README.md)"))],
    contract.exercises_have_a_stub_a_check_and_a_hidden_solution: [
        lambda notebook: notebook["cells"].__delitem__(slice(9, 12)),
        replacing(9, code("answer_1 = 2", "exercise")),
        replacing(11, code("answer_1 = 2", "solution")),
        replacing(10, code("print(answer_1)")),
    ],
    contract.no_measured_figure_is_typed_into_text: [
        said("Each weight moves by up to 6%."),
        said("INT8 is two times as fast."),
        said("<details>\n\nIt took **30** s.\n\n</details>"),
        said("`put_load` reached 1,370 tok/s."),
        said("*Published*: up to 1.6×."),
        said("*Published*: 1.6× (vLLM documentation).\n\nHere 2.1×."),
    ],
}
TYPED = contract.no_measured_figure_is_typed_into_text


@pytest.mark.parametrize("rule", contract.RULES, ids=lambda rule: rule.__name__)
def test_a_notebook_that_breaks_the_rule_is_noticed_by_it(rule: Rule, good: Notebook, path: Path) -> None:
    for place, spoil in enumerate(SPOILT[rule]):
        spoilt = copy.deepcopy(good)
        spoil(spoilt)
        assert rule(spoilt, path) != [], f"example {place}"


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
    said(text)(good)
    assert breaches(good, path) == {}


def test_a_definition_is_let_through_by_its_phrase_and_a_phrase_that_is_gone_is_noticed(
    good: Notebook, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for phrases in contract.ALLOWED.values():
        assert all(contract.FIGURE.search(phrase) and reason for phrase, reason in phrases.items())
    assert contract.ALLOWED.keys() <= {lab.stem for lab in notebooks.lab_paths()}
    monkeypatch.setitem(contract.ALLOWED, "00_a", {"95% intervals": "what we ask for"})
    assert TYPED(good, path) == ["'95% intervals' is allowed and not there any more"]
    said("All are 95% intervals.")(good)
    assert TYPED(good, path) == []
    said("All are 95% intervals, and 94% were kept.")(good)
    assert TYPED(good, path) == ["cell 5 has typed the figure '94%'"]


# --- the generated lines ----------------------------------------------------------------------------------------------

PASSED = {"verdict": "passed", "reason": "", "peak_bytes": 1}


def report(folder: Path, first: float, second: float, **changes: Any) -> str:
    labs = [{"name": "00_a", "seconds": first, **PASSED}, {"name": "01_b", "seconds": second, **PASSED}]
    run = {"profile": "tiny", "machine": "A, 2 cores", "level": "avx2", "started": "2026-11-29T08:00:00"}
    file = folder / f"report-{len(list(folder.iterdir()))}.json"
    file.write_text(notebooks.dumps({**run, "complete": True, "labs": labs, **changes}))
    return str(file)


def test_the_command_writes_links_and_measured_times_and_then_finds_nothing_to_do(
    path: Path, good: Notebook, tmp_path: Path
) -> None:
    """Two labs as an author leaves them: no navigation yet, and an empty place for the time."""
    good["cells"].pop(1)
    for name in ("00_a", "01_b"):
        header = HEADER.replace("# A lab", f"# {name[-1].upper()} lab")
        notebooks.set_source(good["cells"][0], navigation.TIME.sub("<!-- time --><!-- /time -->", header))
        path.with_name(f"{name}.ipynb").write_text(notebooks.dumps(good))
    labs = [path, path.with_name("01_b.ipynb")]
    folder = ["--notebooks", str(path.parent)]
    one_failed = [{"name": "00_a", "seconds": 1, **PASSED, "verdict": "failed"}]
    unchanged = [{"name": "00_a", "seconds": 0, **PASSED, "unchanged": True}]
    for changes in ({"complete": False}, {"labs": one_failed}, {"labs": unchanged}, {"jobs": 2}):
        assert navigation.main([*folder, "--report", report(tmp_path, 41.2, 130.0, **changes)]) == 1
        assert navigation.measured_time(notebooks.read(path)) == "", "times of a run that did not pass one by one"
    slow, fast = report(tmp_path, 41.2, 130.0), report(tmp_path, 7.0, 7.0, level="bf16", started="2026-11-30T08:00:00")
    assert navigation.main([*folder, "--report", slow]) == 0
    written = []
    for _ in range(2):
        assert navigation.main([*folder, "--report", slow, "--report", fast]) == 0
        written.append([lab.read_bytes() for lab in labs])
    assert written[0] == written[1]
    first, second = map(notebooks.read, labs)
    assert notebooks.source(first["cells"][1]).endswith("\n[All labs](../README.md#the-labs) | [B lab →](01_b.ipynb)")
    assert notebooks.source(second["cells"][1]).endswith("\n[← A lab](00_a.ipynb) | [All labs](../README.md#the-labs)")
    both = "50 s (avx2), 10 s (bf16); `tiny` profile, 2 cores, 2026-11-29 and 2026-11-30"
    assert navigation.measured_time(first) == both
