"""A lab says before a long cell how long it takes here: by its last run, else by a run elsewhere and a probe."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


def run_on(level: str, seconds: float, probe: float = 1.0) -> dict[str, Any]:
    """A run as it ships: a lab of one slow cell."""
    lab = {"seconds": 2 * seconds, "cells": {pace.cell_key("slow"): seconds}}
    return {"level": level, "date": "2026-11-29", "probe_seconds": probe, "labs": {"01_a": lab}}


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What ships: a run on two levels each, and this machine takes the probe in 1 s."""
    path = tmp_path / "paces.json"
    path.write_text(json.dumps({"tiny": [run_on("bf16", 10.0), run_on("avx2", 40.0, probe=0.5)]}))
    monkeypatch.setattr(pace, "SHIPPED", path)
    monkeypatch.setattr(pace, "probe_seconds", lambda: 1.0)
    return path


def slow(workspace: Workspace, level: str, profile: str = "tiny") -> float | None:
    found = pace.expected(workspace, "01_a", profile, level)
    return found and found.of("slow\n")


def test_only_cells_that_a_learner_waits_for_are_kept(tmp_path: Path) -> None:
    found = pace.cell_seconds(executed(tmp_path / "lab.ipynb", quick=0.2, slow=41.04))
    assert found == {pace.cell_key("slow"): 41.0}
    assert pace.cell_seconds(tmp_path / "none.ipynb") == {}


@pytest.mark.parametrize(
    ("level", "seconds"), [("bf16", 10), ("amx", 10), ("some GPU", 10), ("avx2", 80), ("vnni", 80), ("other", 80)]
)
def test_a_machine_is_compared_with_the_nearest_level_below_it_by_the_probe(
    shipped: Path, tmp_path: Path, level: str, seconds: float
) -> None:
    assert slow(Workspace(tmp_path), level) == seconds
    found = pace.expected(Workspace(tmp_path), "01_a", "tiny", level)
    assert found is not None
    assert found.seconds == 2 * seconds
    assert found.of("another") is None


def test_of_two_gpus_the_one_that_is_here_counts(shipped: Path, tmp_path: Path) -> None:
    shipped.write_text(json.dumps({"workbench": [run_on("one GPU", 10.0), run_on("another GPU", 20.0)]}))
    assert slow(Workspace(tmp_path), "another GPU", "workbench") == 20


def test_this_workspaces_own_run_goes_before_what_ships_and_another_profiles_does_not(
    shipped: Path, tmp_path: Path
) -> None:
    workspace = Workspace(tmp_path)
    assert slow(workspace, "bf16", "workbench") is None
    workspace.passed.mkdir()
    own = {"profile": "workbench", "seconds": 300.0, "cells": {pace.cell_key("slow"): 200.0}}
    (workspace.passed / "01_a.json").write_text(json.dumps(own))
    assert slow(workspace, "bf16", "workbench") == 200
    assert slow(workspace, "bf16", "tiny") == 10
    (workspace.passed / "01_a.json").write_text("{half")
    assert slow(workspace, "bf16", "workbench") is None


def test_the_probe_takes_a_moment_and_is_taken_once() -> None:
    assert 0 < pace.probe_seconds() < 5
    assert pace.probe_seconds() == pace.probe_seconds()


@pytest.mark.parametrize(
    ("seconds", "said"), [(3, "10 s"), (41, "50 s"), (94.9, "100 s"), (95, "2 min"), (601, "11 min")]
)
def test_times_are_rounded_up_as_people_say_them(seconds: float, said: str) -> None:
    assert pace.rounded_up(seconds) == said


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Runs a cell of a lab that has run in this workspace before; what it prints."""
    workspace = Workspace(tmp_path)
    workspace.passed.mkdir()
    cells = {"print('done')": 41.0, "print('quick')": 3.0, "time.sleep(0.1)": 0.02, "print('later')": 20.0}
    known = {"profile": "tiny", "seconds": 99.0, "cells": {pace.cell_key(c): seconds for c, seconds in cells.items()}}
    (workspace.passed / "probe.json").write_text(json.dumps(known))
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=120)
    opening = f"import labkit, time\nlab = labkit.open_lab('probe', profile='tiny', workspace={str(tmp_path)!r})"
    try:
        assert "Takes about" not in said(client, opening) + said(client, opening)  # a learner runs it again
        yield lambda cell: said(client, cell)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


LAST = "estimated from this lab's last run in this workspace"


def test_a_long_cell_says_so_in_its_first_line_and_only_once(lab: Callable[[str], str]) -> None:
    assert lab("print('quick')") == "quick\n"
    assert lab("print('other')") == "other\n"
    assert lab("print('done')") == f"Takes about 50 s here ({LAST}).\ndone\n"
    assert lab("print('later')") == f"Takes about 20 s here ({LAST}).\nlater\n", "what is done by now says nothing"


def test_cells_that_have_run_correct_what_is_said_of_later_ones(lab: Callable[[str], str]) -> None:
    lab("from labkit import pace\npace.KEPT_SECONDS = 0.05")
    lab("time.sleep(0.1)")  # five times what it took
    later = lab("print('later')")
    assert later.endswith(f" min here ({LAST} and the cells so far).\nlater\n")
    assert int(later.split()[2]) >= 2


def said(client: object, code: str) -> str:
    """What a cell prints."""
    lines: list[str] = []

    def hear(message: dict[str, dict[str, str]]) -> None:
        if message["header"]["msg_type"] == "stream":
            lines.append(message["content"]["text"])

    reply = client.execute_interactive(code, output_hook=hear, timeout=120)  # type: ignore[attr-defined]
    assert reply["content"]["status"] == "ok", reply["content"]
    return "".join(lines)


def test_the_command_takes_the_times_of_runs_and_keeps_other_levels_and_profiles(tmp_path: Path) -> None:
    executed(tmp_path / "01_a.ipynb", slow=41.04)
    lab = {"name": "01_a", "verdict": "passed", "reason": "", "seconds": 50.0, "notebook": "01_a.ipynb"}
    report = {"profile": "tiny", "started": "2026-11-29T08:00:00", "probe_seconds": 0.5, "complete": True}
    options = ["--output", str(tmp_path / "paces.json")]
    for level in ("avx2", "bf16"):
        (tmp_path / level).mkdir()
        shutil.copy(tmp_path / "01_a.ipynb", tmp_path / level)
        (tmp_path / level / "report.json").write_text(json.dumps({**report, "level": level, "labs": [lab]}))
        options += ["--report", str(tmp_path / level / "report.json")]
    old = [run_on("avx2", 7.0), run_on("vnni", 7.0)]
    (tmp_path / "paces.json").write_text(json.dumps({"tiny": old, "workbench": old}))
    assert paces.main(options) == 0
    new = {"date": "2026-11-29", "probe_seconds": 0.5}
    new["labs"] = {"01_a": {"seconds": 50.0, "cells": {pace.cell_key("slow"): 41.0}}}
    assert json.loads((tmp_path / "paces.json").read_text()) == {
        "tiny": [run_on("vnni", 7.0), {"level": "avx2", **new}, {"level": "bf16", **new}],
        "workbench": old,
    }


def test_the_times_that_ship_are_of_cells_that_are_there() -> None:
    assert paces.stale() == []


@pytest.mark.labs
def test_a_run_keeps_the_times_of_its_labs_and_of_their_cells(labs_run: LabsRun) -> None:
    for lab in labs_run.report["labs"]:
        kept = json.loads((labs_run.workspace.passed / f"{lab['name']}.json").read_text())
        assert (kept["profile"], kept["seconds"]) == ("tiny", lab["seconds"])
        assert kept["cells"] == pace.cell_seconds(labs_run.output / lab["notebook"])
