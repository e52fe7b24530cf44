"""A lab says before a long cell how long it takes here: by its last run, else by a run elsewhere and a probe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import start_new_kernel
from nbformat.v4 import new_code_cell, new_notebook

from labkit import pace
from labkit.store import Workspace
from tests.conftest import LabsRun
from tools import navigation, tables


def executed(path: Path, **seconds: float) -> Path:
    """A notebook as papermill leaves it: each source with the seconds that it took."""
    cells = [new_code_cell(source, metadata={"papermill": {"duration": took}}) for source, took in seconds.items()]
    injected = {"tags": [pace.INJECTED], "papermill": {"duration": 9}}
    nbformat.write(new_notebook(cells=[new_code_cell("limit = 7", metadata=injected), *cells]), path)
    return path


def run_on(level: str, seconds: float, probe: float = 1.0) -> dict[str, Any]:
    """A run as it ships: a lab of one slow cell."""
    lab = {"seconds": 2 * seconds, "cells": {pace.cell_key("slow"): seconds}}
    return {"level": level, "date": "2026-11-29", "probe_seconds": probe, "labs": {"01_a": lab}}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty one, on a machine that takes the probe in 1 s; what ships are runs on two levels, and on two GPUs."""
    path = tmp_path / "paces.json"
    gpus = [run_on("one GPU", 20.0), run_on("another GPU", 30.0)]
    path.write_text(json.dumps({"tiny": [run_on("bf16", 10.0), run_on("avx2", 40.0, probe=0.5)], "workbench": gpus}))
    monkeypatch.setattr(pace, "SHIPPED", path)
    monkeypatch.setattr(pace, "probe_seconds", lambda: 1.0)
    return Workspace(tmp_path)


def slow(workspace: Workspace, level: str, profile: str = "tiny") -> float:
    found = pace.expected(workspace, "01_a", profile, level)
    return found.cells[pace.cell_key("slow\n")] if found else -1


def test_only_cells_that_a_learner_waits_for_are_kept(tmp_path: Path) -> None:
    found = pace.cell_seconds(executed(tmp_path / "lab.ipynb", quick=0.2, slow=41.04))
    assert found == {pace.cell_key("slow"): 41.0}


def test_a_machine_is_compared_with_the_nearest_level_below_it_by_the_probe(workspace: Workspace) -> None:
    wanted = {"bf16": 10, "amx": 10, "some GPU": 10, "avx2": 80, "vnni": 80, "other": 80}
    assert {level: slow(workspace, level) for level in wanted} == wanted
    assert [slow(workspace, level, "workbench") for level in ("one GPU", "another GPU")] == [20, 30]


def test_this_workspaces_own_run_goes_before_what_ships_and_another_profiles_does_not(workspace: Workspace) -> None:
    workspace.passed.mkdir()
    own = {"profile": "workbench", "seconds": 300.0, "cells": {pace.cell_key("slow"): 200.0}}
    (workspace.passed / "01_a.json").write_text(json.dumps(own))
    assert [slow(workspace, "bf16", profile) for profile in ("workbench", "tiny", "none")] == [200, 10, -1]
    (workspace.passed / "01_a.json").write_text("{half")
    assert slow(workspace, "one GPU", "workbench") == 20


def test_times_are_rounded_up_as_people_say_them() -> None:
    assert [*map(pace.rounded_up, (3, 41, 94.9, 95, 601))] == ["10 s", "50 s", "100 s", "2 min", "11 min"]
    assert 0 < pace.probe_seconds() < 5, "the probe takes a moment"


def test_a_long_cell_says_so_in_its_first_line_and_only_once(tmp_path: Path) -> None:
    cells = {pace.cell_key(cell): seconds for cell, seconds in {"print('done')": 41.0, "print('quick')": 3.0}.items()}
    (tmp_path / "passed").mkdir()
    (tmp_path / "passed" / "probe.json").write_text(json.dumps({"profile": "tiny", "seconds": 99.0, "cells": cells}))
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=120)

    def said(code: str) -> str:
        lines: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            if message["header"]["msg_type"] == "stream":
                lines.append(message["content"]["text"])

        reply = client.execute_interactive(code, output_hook=hear, timeout=120)
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(lines)

    opening = f"import labkit\nlab = labkit.open_lab('probe', profile='tiny', workspace={str(tmp_path)!r})"
    try:
        assert "Takes about" not in said(opening) + said(opening)  # a learner runs it again
        assert said("print('quick')") == "quick\n"
        assert said("print('other')") == "other\n"
        told = "Takes about 50 s here (estimated from this lab's last run in this workspace).\ndone\n"
        assert said("print('done')") == told
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# --- what ships


def test_the_command_takes_the_times_of_runs_and_keeps_other_levels_and_profiles(tmp_path: Path) -> None:
    executed(tmp_path / "01_a.ipynb", slow=41.04)
    lab = {"name": "01_a", "verdict": "passed", "reason": "", "seconds": 50.0, "notebook": "01_a.ipynb"}
    report = {"profile": "tiny", "started": "2026-11-29T08:00:00", "probe_seconds": 0.5, "complete": True}
    reports = []
    for level in ("avx2", "bf16"):
        (tmp_path / level).mkdir()
        shutil.copy(tmp_path / "01_a.ipynb", tmp_path / level)
        (tmp_path / level / "report.json").write_text(json.dumps({**report, "level": level, "labs": [lab]}))
        reports.append(tmp_path / level / "report.json")
    old = [run_on("avx2", 7.0), run_on("vnni", 7.0)]
    (tmp_path / "paces.json").write_text(json.dumps({"tiny": old, "workbench": old}))
    tables.write_paces(navigation.reports(reports), tmp_path / "paces.json")
    new = {"date": "2026-11-29", "probe_seconds": 0.5}
    new["labs"] = {"01_a": {"seconds": 50.0, "cells": {pace.cell_key("slow"): 41.0}}}
    assert json.loads((tmp_path / "paces.json").read_text()) == {
        "tiny": [run_on("vnni", 7.0), {"level": "avx2", **new}, {"level": "bf16", **new}],
        "workbench": old,
    }


def test_the_times_that_ship_are_of_cells_that_are_there() -> None:
    assert tables.stale_paces() == []


@pytest.mark.labs
def test_a_run_keeps_the_times_of_its_labs_and_of_their_cells(labs_run: LabsRun) -> None:
    for lab in labs_run.report["labs"]:
        kept = json.loads((labs_run.workspace.passed / f"{lab['name']}.json").read_text())
        assert (kept["profile"], kept["seconds"]) == ("tiny", lab["seconds"])
        assert kept["cells"] == pace.cell_seconds(labs_run.output / lab["notebook"])
