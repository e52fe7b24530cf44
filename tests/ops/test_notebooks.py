"""What the runner reads from a notebook file, what it refuses, and which labs a command runs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from labkit.checkpoint import short_name
from labkit.errors import UsageError
from labkit.files import publishing
from labkit.ledger import Measurement
from labkit.ops.notebooks import (
    Lab,
    Plan,
    find_labs,
    find_notebooks,
    has_results,
    parameters_of,
    parse_parameters,
    parse_value,
    refuse_shared_gpu,
    select_labs,
)
from labkit.profiles import TINY
from labkit.store import Workspace
from tests.ops.probes import write_lab


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("PROFILE", "WORKSPACE", "MODEL", "DATA", "TARGET"):
        monkeypatch.delenv(f"LABKIT_{name}", raising=False)


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    write_lab(folder, "00_start_here")
    write_lab(folder, "01_fp8_rtn", makes=["bf16", "fp8-dynamic"])
    write_lab(folder, "02_int8", makes=["int8-rtn", "int8-gptq"], schemes=["int8-w8a8"])
    write_lab(folder, "03_evaluation", needs=["01_fp8_rtn", "02_int8"])
    write_lab(folder, "04_scorecard", needs=["03_evaluation"])
    return folder


@pytest.fixture
def labs(notebooks: Path) -> tuple[Lab, ...]:
    return find_labs(notebooks)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


def make(workspace: Workspace, variant: str, base: str = "tiny", model: str = "") -> None:
    with publishing(workspace.checkpoint(variant, model), base=base) as stage:
        (stage / "config.json").write_text("{}")


def numbers(labs: tuple[Lab, ...]) -> list[str]:
    return [lab.name[:2] for lab in labs]


# --- what a notebook says


def with_parameters(*sources: str) -> nbformat.NotebookNode:
    return new_notebook(cells=[new_code_cell(source, metadata={"tags": ["parameters"]}) for source in sources])


def test_parameters_are_the_literals_of_the_tagged_cell() -> None:
    source = 'profile = ""  # empty: the default\nlimit: int = 0\nrates = [0.5, 0.8]\nfast = False\nnothing = None'
    notebook = with_parameters(source)
    notebook.cells.append(new_code_cell("other = 1"))
    assert parameters_of(notebook) == {"profile": "", "limit": 0, "rates": [0.5, 0.8], "fast": False, "nothing": None}
    assert parameters_of(new_notebook(cells=[new_code_cell("x = 1")])) == {}


@pytest.mark.parametrize(
    "source", ["limit = 2 * 10", "import os", "a = b = 1", "a, b = 1, 2", "limit =", "limit: int", "x.y = 1"]
)
def test_anything_but_plain_literals_in_one_cell_is_refused(source: str) -> None:
    with pytest.raises(UsageError, match="the parameters cell of the notebook can't be read"):
        parameters_of(with_parameters(source))
    with pytest.raises(UsageError, match="has 2 cells tagged"):
        parameters_of(with_parameters("a = 1", source))


def test_a_lab_says_what_it_needs_makes_and_is_called(labs: tuple[Lab, ...]) -> None:
    lab = labs[2]
    assert (lab.name, lab.title, lab.needs, lab.alone) == ("02_int8", "Probe 02_int8", (), False)
    assert (lab.makes, lab.schemes) == (("int8-rtn", "int8-gptq"), ("int8-w8a8",))
    assert lab.parameters == {"profile": "", "workspace": "", "model": "", "data": "", "limit": 0}
    assert labs[4].needs == ("03_evaluation",)
    for name in ("scratch", "1_short"):
        write_lab(lab.path.parent, name)
    assert numbers(find_labs(lab.path.parent)) == ["00", "01", "02", "03", "04"], "only numbered ones are labs"


@pytest.mark.parametrize(
    ("about", "said"),
    [
        *(({"needs": [lab]}, f"needs '{lab}', which is no lab before it") for lab in ("01_typo", "03_later", "02_b")),
        ({"needs": "01_a"}, r"labkit\.needs is '01_a'\nNow: write a list of names"),
        *(({"keeps": bits}, r"labkit\.keeps is .*\n.*4, 8 and 16") for bits in ("8", [7], ["8"], 8)),
    ],
)
def test_metadata_that_makes_no_sense_is_refused(tmp_path: Path, about: dict[str, object], said: str) -> None:
    write_lab(tmp_path, "02_b", **about)
    write_lab(tmp_path, "03_later")
    with pytest.raises(UsageError, match=said):
        find_labs(tmp_path)


@pytest.mark.parametrize("text", ["<<<<<<< HEAD", "[]", '{"cells": [{}]}'])
def test_a_file_that_is_no_notebook_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "01_a.ipynb").write_text(text)
    with pytest.raises(UsageError, match=r"01_a\.ipynb can't be read as a notebook"):
        find_labs(tmp_path)


def test_the_notebooks_are_found_from_any_folder_of_the_course(notebooks: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    for start in (tmp_path, tmp_path / "data" / "deep", notebooks):
        assert find_notebooks(start) == notebooks


# --- the values of parameters


VALUES = [("01", "", "01"), ("20", 0, 20), ("-3", 0, -3), ("0.5", 1.0, 0.5), ("2", 1.0, 2.0), ("true", False, True)]
VALUES += [("False", True, False), ("[1, 2]", [], [1, 2]), ("None", None, None), ("'x'", None, "x")]


@pytest.mark.parametrize(("text", "default", "value"), VALUES)
def test_a_value_gets_the_type_of_the_default(text: str, default: object, value: object) -> None:
    parsed = parse_value("name", text, default)
    assert (parsed, type(parsed)) == (value, type(value))
    if not isinstance(default, str):  # whatever else is typed is refused, too: tests/faults/test_fuzz.py
        with pytest.raises(UsageError, match=r"'limit' can't be '\[x'[\s\S]*it must be [\s\S]*its default is"):
            parse_value("limit", "[x", default)


def test_a_parameter_must_be_known_to_one_lab_and_may_not_be_given_twice_with_two_values(tmp_path: Path) -> None:
    write_lab(tmp_path, "01_a", parameters="limit = 0")
    write_lab(tmp_path, "02_b", parameters="other = 0")
    labs = find_labs(tmp_path)
    assert parse_parameters(labs, [("limit", "5"), ("limit", "5")]) == {"limit": 5}
    with pytest.raises(UsageError, match=r"no lab of this run has a parameter 'limt'[\s\S]*limit, other"):
        parse_parameters(labs, [("limt", "5")])
    with pytest.raises(UsageError, match="given twice, as 5 and 6"):
        parse_parameters(labs, [("limit", "5"), ("limit", "6")])


# --- which labs run


def test_labs_are_named_by_stem_or_number_and_run_in_their_own_order(labs: tuple[Lab, ...]) -> None:
    for word in ("1", "01", "01_fp8_rtn", "01_fp8_rtn.ipynb", "notebooks/01_fp8_rtn.ipynb"):
        assert numbers(select_labs(labs, [word])) == ["01"]
    assert numbers(select_labs(labs, ["3", "01_fp8_rtn", "03"])) == ["01", "03"]
    assert numbers(select_labs(labs, [])) == ["00", "01", "02", "03", "04"]
    for word in ("9", "01_fp8", "", "fp8"):
        with pytest.raises(UsageError, match=r"there is no lab[\s\S]*01_fp8_rtn"):
            select_labs(labs, [word])


def test_a_lab_first_runs_those_it_needs_whose_results_are_not_there(notebooks: Path, workspace: Workspace) -> None:
    def planned(*wanted: str) -> list[str]:
        return numbers(Plan(wanted, workspace=str(workspace.root), folder=notebooks).labs)

    assert planned("03") == ["01", "02", "03"]
    assert planned("04") == ["01", "02", "03", "04"]
    make(workspace, "fp8-dynamic")
    make(workspace, "int8-rtn")
    assert planned("03") == ["02", "03"]  # int8-gptq is missing still
    make(workspace, "int8-gptq")
    assert planned("03") == ["03"]
    assert planned("01") == ["01"], "a named lab runs whatever is there"


def test_results_are_published_checkpoints_of_this_model_or_a_headline_of_a_lab_that_makes_none(
    labs: tuple[Lab, ...], workspace: Workspace, tmp_path: Path
) -> None:
    lab, model = labs[1], str(tmp_path / "my-model")
    workspace.checkpoint("fp8-dynamic").mkdir(parents=True)
    assert not has_results(lab, workspace, TINY, "")
    workspace.checkpoint("fp8-dynamic").rmdir()
    make(workspace, "fp8-dynamic", base="Qwen2.5-7B-Instruct")
    assert not has_results(lab, workspace, TINY, "")
    make(workspace, "fp8-dynamic")
    assert (has_results(lab, workspace, TINY, ""), has_results(lab, workspace, TINY, model)) == (True, False)
    make(workspace, "fp8-dynamic", base=short_name(model), model=short_name(model))
    assert has_results(lab, workspace, TINY, model)
    for purpose in ("trap", "headline"):
        assert not has_results(labs[3], workspace, TINY, "")
        line = Measurement("accuracy", "exact_match", 0.9, "bf16", "tiny", lab="03_evaluation", purpose=purpose)
        workspace.ledger.append([line])
    assert has_results(labs[3], workspace, TINY, "")


# --- what a run is asked for


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("model", "models/mine", "{here}/models/mine"),
        ("model", "tiny", "tiny"),  # the embedded one, though there is a folder of that name
        ("model", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("data", "tiny", "{here}/tiny"),
        ("target", "published/mine", "{here}/published/mine"),
        ("target", "s3://bucket/mine", "s3://bucket/mine"),
        ("target", "hub:me/it", "hub:me/it"),
    ],
)
def test_a_relative_folder_is_counted_from_where_the_command_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, given: str, meant: str
) -> None:
    folder = write_lab(tmp_path / "notebooks", "00_start_here", parameters='model = ""\ndata = ""\ntarget = ""').parent
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "tiny").mkdir()
    expected = {name: meant.format(here=tmp_path)}
    assert Plan(["00"], parameters=[(name, given)], folder=folder).parameters == expected
    monkeypatch.setenv(f"LABKIT_{name.upper()}", given)
    plan = Plan(["00"], parameters=[("profile", "workbench")], folder=folder)  # as papermill's users give it
    assert (plan.parameters, plan.profile.name) == (expected, "workbench")


def test_labs_side_by_side_are_refused_on_a_gpu() -> None:
    refuse_shared_gpu(1, 1)
    refuse_shared_gpu(2, 0)
    with pytest.raises(UsageError, match="jobs is 2 on a machine with 1 GPU"):
        refuse_shared_gpu(2, 1)
