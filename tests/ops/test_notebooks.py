"""What the runner reads from a notebook file, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from labkit.errors import UsageError
from labkit.ops.notebooks import find_labs, find_notebooks, parameters_of, parse_parameters, parse_value, read_lab
from tests.ops.probes import write_lab


def with_parameters(*sources: str) -> nbformat.NotebookNode:
    return new_notebook(cells=[new_code_cell(source, metadata={"tags": ["parameters"]}) for source in sources])


def test_parameters_are_the_literals_of_the_tagged_cell() -> None:
    source = 'profile = ""  # empty: the default\nlimit: int = 0\nrates = [0.5, 0.8]\nfast = False\nnothing = None'
    notebook = with_parameters(source)
    notebook.cells.append(new_code_cell("other = 1"))
    assert parameters_of(notebook) == {"profile": "", "limit": 0, "rates": [0.5, 0.8], "fast": False, "nothing": None}


def test_a_notebook_without_a_parameters_cell_has_none() -> None:
    assert parameters_of(new_notebook(cells=[new_code_cell("x = 1")])) == {}


@pytest.mark.parametrize(
    "source", ["limit = 2 * 10", "import os", "a = b = 1", "a, b = 1, 2", "limit =", "limit: int", "x.y = 1"]
)
def test_anything_but_plain_literals_is_refused(source: str) -> None:
    with pytest.raises(UsageError, match="the parameters cell of the notebook can't be read"):
        parameters_of(with_parameters(source))


def test_a_second_parameters_cell_is_refused() -> None:
    with pytest.raises(UsageError, match="has 2 cells tagged"):
        parameters_of(with_parameters("a = 1", "b = 2"))


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("01", "", "01"),
        ("20", 0, 20),
        ("-3", 0, -3),
        ("0.5", 1.0, 0.5),
        ("2", 1.0, 2.0),
        ("true", False, True),
        ("False", True, False),
        ("[1, 2]", [], [1, 2]),
        ("None", None, None),
        ("'x'", None, "x"),
    ],
)
def test_a_value_gets_the_type_of_the_default(text: str, default: object, value: object) -> None:
    parsed = parse_value("name", text, default)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "default", "wanted"),
    [
        ("ten", 0, "a whole number"),
        ("2.5", 0, "a whole number"),
        ("much", 0.5, "a number"),
        ("yes", False, "true or false"),
        ("3", [], "type list"),
        ("[1", [], "type list"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_type_and_the_default(text: str, default, wanted: str) -> None:
    with pytest.raises(UsageError, match=f"'limit' can't be '.*'[\\s\\S]*{wanted}[\\s\\S]*its default is"):
        parse_value("limit", text, default)


def test_a_lab_says_what_it_needs_makes_and_is_called(tmp_path: Path) -> None:
    write_lab(tmp_path, "01_a")
    write_lab(tmp_path, "02_b", needs=["01_a"], makes=["int8-rtn"], schemes=["int8-w8a8"])
    first, second = find_labs(tmp_path)
    assert (first.name, first.needs, first.makes) == ("01_a", (), ())
    assert (second.needs, second.makes, second.schemes) == (("01_a",), ("int8-rtn",), ("int8-w8a8",))
    assert second.title == "Probe 02_b"
    assert second.parameters == {"profile": "", "workspace": "", "model": "", "data": "", "limit": 0}


def test_only_numbered_notebooks_are_labs_and_they_come_in_order(tmp_path: Path) -> None:
    for name in ("10_c", "02_b", "scratch", "1_short"):
        write_lab(tmp_path, name)
    assert [lab.name for lab in find_labs(tmp_path)] == ["02_b", "10_c"]


def test_a_need_that_is_no_lab_is_refused(tmp_path: Path) -> None:
    write_lab(tmp_path, "02_b", needs=["01_typo"])
    with pytest.raises(UsageError, match="needs '01_typo'"):
        find_labs(tmp_path)


def test_metadata_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    notebook = new_notebook(cells=[new_markdown_cell("# A")], metadata={"labkit": {"needs": "01_a"}})
    nbformat.write(notebook, tmp_path / "02_b.ipynb")
    with pytest.raises(UsageError, match=r"labkit\.needs is '01_a'"):
        read_lab(tmp_path / "02_b.ipynb")


@pytest.mark.parametrize("value", ["8", [7], ["8"], 8])
def test_copies_of_a_model_are_told_by_the_bits_of_their_weights(tmp_path: Path, value: object) -> None:
    notebook = new_notebook(cells=[new_markdown_cell("# A")], metadata={"labkit": {"keeps": value}})
    nbformat.write(notebook, tmp_path / "02_b.ipynb")
    with pytest.raises(UsageError, match=r"labkit\.keeps is .*\n.*4, 8 and 16"):
        read_lab(tmp_path / "02_b.ipynb")


def test_a_file_that_is_no_notebook_is_named(tmp_path: Path) -> None:
    (tmp_path / "01_a.ipynb").write_text("<<<<<<< HEAD")
    with pytest.raises(UsageError, match=r"01_a\.ipynb can't be read as a notebook"):
        find_labs(tmp_path)


def test_the_notebooks_are_found_from_any_folder_of_the_course(tmp_path: Path) -> None:
    write_lab(tmp_path / "notebooks", "00_start_here")
    (tmp_path / "data" / "deep").mkdir(parents=True)
    for start in (tmp_path, tmp_path / "data" / "deep", tmp_path / "notebooks"):
        assert find_notebooks(start) == tmp_path / "notebooks"


def test_a_parameter_goes_to_the_labs_that_have_it_and_must_be_known_to_one(tmp_path: Path) -> None:
    write_lab(tmp_path, "01_a", parameters="limit = 0")
    write_lab(tmp_path, "02_b", parameters="other = 0")
    labs = find_labs(tmp_path)
    assert parse_parameters(labs, [("limit", "5")]) == {"limit": 5}
    with pytest.raises(UsageError, match=r"no lab of this run has a parameter 'limt'[\s\S]*limit, other"):
        parse_parameters(labs, [("limt", "5")])


def test_a_parameter_given_twice_with_two_values_is_refused(tmp_path: Path) -> None:
    write_lab(tmp_path, "01_a")
    labs = find_labs(tmp_path)
    assert parse_parameters(labs, [("limit", "5"), ("limit", "5")]) == {"limit": 5}
    with pytest.raises(UsageError, match="given twice, as 5 and 6"):
        parse_parameters(labs, [("limit", "5"), ("limit", "6")])
