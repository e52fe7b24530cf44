"""Labs in JupyterLab, in a real browser: they open, run without an error, and what can be moved moves."""

from __future__ import annotations

import shutil

import pytest
from playwright.sync_api import Page

from labkit.ops.notebooks import find_labs
from tests.browser.conftest import Serve, Server, keep
from tests.browser.notebook_page import NotebookPage, unfold
from tests.conftest import ROOT, LabsRun
from tools import notebooks

LABS = {lab.name: lab for lab in find_labs(ROOT / "notebooks")}
ALONE = ["00_start_here", "01_fp8_rtn"]  # they need no other lab's results
WITH_EXPLORERS = ["00_start_here", "01_fp8_rtn", "02_int8_smoothquant_gptq", "03_evaluation"]
LAB_SECONDS = 1800
ROWS = 8


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory, serve: Serve) -> Server:
    """A checkout as a newcomer has it, with an empty workspace."""
    root = tmp_path_factory.mktemp("new")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    return serve(root, root / "workspace")


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory, serve: Serve, labs_run: LabsRun) -> Server:
    """A checkout whose instructor has run all labs the night before: a copy of that run's workspace.

    Its notebooks ask for a few rows only: what is tested is how the labs are used, not the models.
    """
    root = tmp_path_factory.mktemp("validated")
    shutil.copytree(ROOT / "notebooks", root / "notebooks")
    for lab in LABS:
        path = root / "notebooks" / f"{lab}.ipynb"
        path.write_text(path.read_text().replace('"limit = 0"', f'"limit = {ROWS}"'))
    shutil.copytree(labs_run.workspace.root, root / "workspace", symlinks=True)
    return serve(root, root / "workspace")


@pytest.mark.parametrize("lab", LABS)
def test_a_lab_opens_and_its_worked_answers_unfold(page: Page, new: Server, lab: str) -> None:
    opened = NotebookPage.open(page, new.address(lab))
    assert opened.title == LABS[lab].title
    cells = notebooks.read(ROOT / "notebooks" / f"{lab}.ipynb")["cells"]
    answers = [notebooks.source(c) for c in cells if "solution" in c["metadata"].get("tags", [])]
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
@pytest.mark.parametrize("lab", [lab for lab in LABS if lab not in ALONE])
def test_a_lab_runs_whole_where_all_labs_have_run(page: Page, validated: Server, lab: str) -> None:
    run_whole(page, validated, lab)


def run_whole(page: Page, server: Server, lab: str) -> None:
    opened = NotebookPage.open(page, server.address(lab))
    opened.run_all(LAB_SECONDS)
    assert opened.errors == []
    assert opened.red == [], "library chatter belongs into a log"
    said = "\n".join(opened.texts("application/vnd.jupyter.stdout"))
    assert f"End of {lab}." in said
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
    assert opened.errors == []
