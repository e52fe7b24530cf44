"""Labs in JupyterLab, in a real browser: they open, run without an error, and what can be moved moves."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import Server, keep, serving
from tests.browser.notebook_page import NotebookPage, unfold
from tests.conftest import LABS, ROOT, LabsRun
from tools import notebooks

TITLES = {lab.name: lab.title for lab in LABS}
ALONE = ["00_start_here", "01_fp8_rtn"]  # they need no other lab's results
WITH_EXPLORERS = ["00_start_here", "01_fp8_rtn", "02_int8_smoothquant_gptq", "03_evaluation"]
LAB_SECONDS = 1800
ROWS = 8


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A checkout as a newcomer has it, with an empty workspace."""
    root = tmp_path_factory.mktemp("new")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    with serving(root, root / "workspace") as server:
        yield server


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory, labs_run: LabsRun) -> Iterator[Server]:
    """A checkout whose instructor has run all labs the night before: a copy of that run's workspace.

    Its notebooks ask for a few rows only: what is tested is how the labs are used, not the models.
    """
    root = tmp_path_factory.mktemp("validated")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    for path in (root / "notebooks").glob("*.ipynb"):
        path.write_text(path.read_text().replace('"limit = 0"', f'"limit = {ROWS}"'))
    shutil.copytree(labs_run.workspace.root, root / "workspace", symlinks=True)
    with serving(root, root / "workspace") as server:
        yield server


@pytest.mark.parametrize("lab", [ALONE[0], *(pytest.param(lab, marks=pytest.mark.long) for lab in [*TITLES][1:])])
def test_a_lab_opens_and_its_worked_answers_unfold(page: Page, new: Server, lab: str) -> None:
    opened = NotebookPage.open(page, new.address(lab))
    assert opened.title == TITLES[lab]
    cells = notebooks.read(ROOT / "notebooks" / f"{lab}.ipynb")["cells"]
    answers = [notebooks.source(cell) for cell in cells if "solution" in notebooks.tags(cell)]
    folded = opened.folded()
    assert len(folded) == len(answers)
    for cell, answer in zip(folded, answers, strict=True):
        assert unfold(cell).split() == answer.split()


@pytest.mark.timeout(LAB_SECONDS)
@pytest.mark.parametrize("lab", [ALONE[0], *(pytest.param(lab, marks=pytest.mark.long) for lab in ALONE[1:])])
def test_a_lab_runs_whole_on_a_new_checkout(page: Page, new: Server, lab: str) -> None:
    run_whole(page, new, lab)


@pytest.mark.long
@pytest.mark.timeout(LAB_SECONDS + 3000)
@pytest.mark.parametrize("lab", [lab for lab in TITLES if lab not in ALONE])
def test_a_lab_runs_whole_where_all_labs_have_run(page: Page, validated: Server, lab: str) -> None:
    run_whole(page, validated, lab)


def run_whole(page: Page, server: Server, lab: str) -> None:
    opened = NotebookPage.open(page, server.address(lab))
    opened.run_all(LAB_SECONDS)
    assert opened.texts("application/vnd.jupyter.error") == []
    assert opened.texts("application/vnd.jupyter.stderr") == [], "JupyterLab shows it in red; it belongs into a log"
    assert f"End of {lab}." in "\n".join(opened.texts("application/vnd.jupyter.stdout"))
    assert opened.undescribed() == 0
    explorers = opened.explorers()
    assert bool(explorers) == (lab in WITH_EXPLORERS)
    for explorer in explorers:
        explorer.scroll_into_view_if_needed()
        keep(page, f"{lab}-explorer-before")
        for slider in range(explorer.locator(".noUi-handle").count()):
            before, after = opened.move(explorer, slider)
            assert before != after
        keep(page, f"{lab}-explorer-after")
    assert opened.texts("application/vnd.jupyter.error") == []
