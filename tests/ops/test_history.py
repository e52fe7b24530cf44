"""`labkit run --only-changed`: what is the same is left alone, and whatever goes into a lab makes it run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labkit.store import Workspace
from tests.ops.probes import PUBLISH, labkit, record, write_lab

Run = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """Three labs: one that needs nothing, one that publishes a checkpoint, one that reads it."""
    notebooks = tmp_path / "notebooks"
    write_lab(notebooks, "00_start_here", record("bf16", 0.94))
    write_lab(notebooks, "01_makes", PUBLISH, makes=["int8-rtn"])
    write_lab(notebooks, "02_reads", record("int8-rtn", 0.5), needs=["01_makes"])
    return tmp_path


@pytest.fixture
def run(course: Path) -> Run:
    """Runs all labs, `--only-changed` unless told otherwise; the report's labs by number."""

    def go(*words: str, env: dict[str, str] | None = None, flags: tuple[str, ...] = ("--only-changed",)) -> Any:
        done = labkit("run", *flags, *words, cwd=course, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads((course / "workspace" / "runs" / "latest" / "report.json").read_text())
        return {lab["name"][:2]: lab for lab in report["labs"]} | {"headline": report["headline"]}

    return go


def ran(labs: dict[str, dict[str, Any]]) -> list[str]:
    return [number for number, lab in labs.items() if number != "headline" and not lab["unchanged"]]


def test_what_has_not_changed_is_left_alone_and_still_counts(run: Run, course: Path) -> None:
    first = run(flags=())
    assert ran(first) == ["00", "01", "02"]
    again = run("--jobs", "2")
    assert ran(again) == []
    for number in ("00", "01", "02"):
        assert again[number]["verdict"] == "passed"
        assert again[number]["reason"].startswith("unchanged since 20")
        assert again[number]["before_seconds"] == first[number]["seconds"]
        assert (course / "workspace" / "runs" / "latest" / str(again[number]["notebook"])).is_file()
    assert again["00"]["figure"] == first["00"]["figure"] == "exact_match: bf16 0.940"
    assert again["headline"] == first["headline"]
    assert ran(run(flags=())) == ["00", "01", "02"], "without the flag everything runs"


def test_a_changed_cell_runs_its_lab_and_what_reads_another_result(run: Run, course: Path) -> None:
    run()
    write_lab(course / "notebooks", "01_makes", PUBLISH, "more = 1", makes=["int8-rtn"])
    assert ran(run()) == ["01"], "it made the same"
    write_lab(course / "notebooks", "01_makes", PUBLISH.replace("{}", "{ }"), makes=["int8-rtn"])
    assert ran(run()) == ["01", "02"]
    assert ran(run()) == []


def test_a_parameter_a_variable_of_the_environment_and_a_file_of_the_data_are_inputs(run: Run, course: Path) -> None:
    rows = course / "data" / "rows.jsonl"
    rows.parent.mkdir()
    rows.write_text("{}\n")
    words, env = ["00", "-p", "limit", "5", "-p", "data", "data"], {"LABKIT_DATA_PARALLEL": "2"}
    run("00")
    assert ran(run(*words)) == ["00"]
    assert ran(run(*words, env=env)) == ["00"]
    assert ran(run(*words, env=env)) == []
    rows.write_text("{} \n")
    assert ran(run(*words, env=env)) == ["00"]


@pytest.mark.long
def test_what_is_lost_is_made_again(run: Run, course: Path) -> None:
    run()
    workspace = Workspace(course / "workspace")
    (workspace.checkpoint("int8-rtn") / "labkit_manifest.json").unlink()
    assert "01" in ran(run())
    workspace.ledger.path.unlink()
    assert ran(run()) == ["00", "02"]
    (course / "workspace" / "passed" / "01_makes.json").write_text("{half")
    assert "01" in ran(run())
