"""A lab says before a long cell how long it takes: as in this workspace's last run, else as where it was measured."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbformat.v4 import new_code_cell, new_notebook

from labkit import pace
from labkit.workspace import Workspace
from tests.conftest import LabsRun
from tools import paces


def executed(path: Path, **seconds: float) -> Path:
    """A notebook as papermill leaves it: each source with the seconds that it took."""
    cells = [new_code_cell(source, metadata={"papermill": {"duration": took}}) for source, took in seconds.items()]
    injected = {"tags": [pace.INJECTED], "papermill": {"duration": 9}}
    nbformat.write(new_notebook(cells=[new_code_cell("limit = 7", metadata=injected), *cells]), path)
    return path


def test_only_cells_that_a_learner_waits_for_are_kept(tmp_path: Path) -> None:
    found = pace.cell_seconds(executed(tmp_path / "lab.ipynb", quick=0.2, slow=41.04))
    assert found == {pace.cell_key("slow"): 41.0}
    assert pace.cell_seconds(tmp_path / "none.ipynb") == {}


def test_this_workspaces_own_run_goes_before_what_ships_and_another_profiles_does_not(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    shipped = pace.expected(workspace, "01_fp8_rtn", "tiny")
    assert shipped is not None
    assert max(shipped.cells.values()) >= pace.NOTICEABLE_SECONDS
    assert pace.expected(workspace, "01_fp8_rtn", "workbench") is None
    workspace.passed.mkdir()
    own = {"profile": "workbench", "cells": {pace.cell_key("slow"): 200.0}}
    (workspace.passed / "01_fp8_rtn.json").write_text(json.dumps(own))
    found = pace.expected(workspace, "01_fp8_rtn", "workbench")
    assert found is not None
    assert found.of("slow\n") == 200
    assert found.of("another") is None
    assert pace.expected(workspace, "01_fp8_rtn", "tiny") == shipped
    (workspace.passed / "01_fp8_rtn.json").write_text("{half")
    assert pace.expected(workspace, "01_fp8_rtn", "workbench") is None


@pytest.mark.parametrize(
    ("seconds", "said"), [(3, "10 s"), (41, "50 s"), (94.9, "100 s"), (95, "2 min"), (601, "11 min")]
)
def test_times_are_rounded_up_as_people_say_them(seconds: float, said: str) -> None:
    assert pace.rounded_up(seconds) == said


def test_a_long_cell_says_so_in_its_first_line_and_only_once(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.passed.mkdir()
    known = {"profile": "tiny", "cells": {pace.cell_key("print('done')"): 41.0}}
    (workspace.passed / "probe.json").write_text(json.dumps(known))
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=120)
    try:
        opening = f"import labkit\nlab = labkit.open_lab('probe', profile='tiny', workspace={str(tmp_path)!r})"
        assert "Takes about" not in said(client, opening) + said(client, opening)  # a learner runs it again
        assert (
            said(client, "print('done')")
            == "Takes about 50 s on the tiny profile, as when it last ran in this workspace.\ndone\n"
        )
        assert said(client, "print('other')") == "other\n"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def said(client: object, code: str) -> str:
    """What a cell prints."""
    lines: list[str] = []

    def hear(message: dict[str, dict[str, str]]) -> None:
        if message["header"]["msg_type"] == "stream":
            lines.append(message["content"]["text"])

    reply = client.execute_interactive(code, output_hook=hear, timeout=120)  # type: ignore[attr-defined]
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(lines)


def test_the_command_takes_a_runs_times_and_keeps_other_profiles(tmp_path: Path) -> None:
    executed(tmp_path / "01_fp8_rtn.ipynb", slow=41.04)
    lab = {"name": "01_fp8_rtn", "verdict": "passed", "notebook": "01_fp8_rtn.ipynb"}
    report = {"profile": "tiny", "machine": "2 cores, avx2+avx512f, no GPU", "complete": True, "labs": [lab]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "paces.json").write_text(json.dumps({"workbench": {"kept": True}}))
    assert paces.main(["--report", str(tmp_path / "report.json"), "--output", str(tmp_path / "paces.json")]) == 0
    assert json.loads((tmp_path / "paces.json").read_text()) == {
        "tiny": {"01_fp8_rtn": {"machine": "2 cores", "cells": {pace.cell_key("slow"): 41.0}}},
        "workbench": {"kept": True},
    }


def test_the_times_that_ship_are_of_cells_that_are_there() -> None:
    assert paces.stale() == []


@pytest.mark.labs
def test_a_run_keeps_the_times_of_its_cells_and_its_labs_say_them(labs_run: LabsRun) -> None:
    for lab in labs_run.report["labs"]:
        kept = json.loads((labs_run.workspace.passed / f"{lab['name']}.json").read_text())
        assert kept["profile"] == "tiny"
        assert kept["cells"] == pace.cell_seconds(labs_run.output / lab["notebook"])
    assert "Takes about" in (labs_run.output / "01_fp8_rtn.ipynb").read_text()
