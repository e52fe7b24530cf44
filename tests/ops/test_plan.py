"""Which labs a command runs: the named ones, and first those they need whose results are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.errors import UsageError
from labkit.ledger import Measurement
from labkit.ops.notebooks import Lab, find_labs
from labkit.ops.plan import has_results, select_labs, with_needed
from labkit.ops.prepare import Request, prepare, refuse_shared_gpu
from labkit.profiles import TINY
from labkit.workspace import Workspace, publishing
from tests.ops.probes import write_lab


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROFILE", "WORKSPACE", "MODEL", "DATA"):
        monkeypatch.delenv(f"LABKIT_{name}", raising=False)


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    write_lab(folder, "00_start_here")
    write_lab(folder, "01_fp8_rtn", makes=["bf16", "fp8-dynamic"])
    write_lab(folder, "02_int8", makes=["int8-rtn", "int8-gptq"])
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


def names(labs: tuple[Lab, ...]) -> list[str]:
    return [lab.name[:2] for lab in labs]


def planned(notebooks: Path, workspace: Workspace, *wanted: str) -> list[str]:
    return names(prepare(Request(wanted, workspace=str(workspace.root)), notebooks).labs)


@pytest.mark.parametrize("word", ["1", "01", "01_fp8_rtn", "01_fp8_rtn.ipynb", "notebooks/01_fp8_rtn.ipynb"])
def test_a_lab_is_named_by_its_stem_or_its_number(labs: tuple[Lab, ...], word: str) -> None:
    assert names(select_labs(labs, [word])) == ["01"]


def test_no_name_means_all_and_names_in_any_order_run_in_the_labs_own(labs: tuple[Lab, ...]) -> None:
    assert names(select_labs(labs, [])) == ["00", "01", "02", "03", "04"]
    assert names(select_labs(labs, ["3", "01_fp8_rtn", "03"])) == ["01", "03"]


@pytest.mark.parametrize("word", ["9", "01_fp8", "", "fp8"])
def test_an_unknown_lab_is_refused_with_those_there_are(labs: tuple[Lab, ...], word: str) -> None:
    with pytest.raises(UsageError, match=r"there is no lab[\s\S]*01_fp8_rtn"):
        select_labs(labs, [word])


def test_a_lab_alone_in_an_empty_workspace_first_runs_those_it_needs(notebooks: Path, workspace: Workspace) -> None:
    assert planned(notebooks, workspace, "03") == ["01", "02", "03"]
    assert planned(notebooks, workspace, "04") == ["01", "02", "03", "04"]


def test_a_needed_lab_whose_checkpoints_are_there_is_left_alone(notebooks: Path, workspace: Workspace) -> None:
    make(workspace, "fp8-dynamic")
    make(workspace, "int8-rtn")
    assert planned(notebooks, workspace, "03") == ["02", "03"]  # int8-gptq is missing still
    make(workspace, "int8-gptq")
    assert planned(notebooks, workspace, "03") == ["03"]


def test_a_named_lab_runs_whatever_is_there(notebooks: Path, workspace: Workspace) -> None:
    make(workspace, "fp8-dynamic")
    assert planned(notebooks, workspace, "01") == ["01"]


def test_a_checkpoint_that_was_never_published_or_is_of_another_model_is_no_result(
    labs: tuple[Lab, ...], workspace: Workspace
) -> None:
    lab = labs[1]
    workspace.checkpoint("fp8-dynamic").mkdir(parents=True)
    assert not has_results(lab, workspace, TINY, "")
    workspace.checkpoint("fp8-dynamic").rmdir()
    make(workspace, "fp8-dynamic", base="Qwen2.5-7B-Instruct")
    assert not has_results(lab, workspace, TINY, "")
    make(workspace, "fp8-dynamic")
    assert has_results(lab, workspace, TINY, "")


def test_results_of_another_model_are_looked_for_under_its_name(
    labs: tuple[Lab, ...], workspace: Workspace, tmp_path: Path
) -> None:
    from labkit.checkpoint import short_name

    model = str(tmp_path / "my-model")
    make(workspace, "fp8-dynamic")
    assert not has_results(labs[1], workspace, TINY, model)
    make(workspace, "fp8-dynamic", base=short_name(model), model=short_name(model))
    assert has_results(labs[1], workspace, TINY, model)


def test_a_lab_that_makes_no_checkpoint_has_results_once_the_ledger_has_a_headline_of_it(
    labs: tuple[Lab, ...], workspace: Workspace
) -> None:
    line = Measurement("accuracy", "exact_match", 0.9, "bf16", "tiny", lab="03_evaluation", purpose="trap")
    workspace.ledger.append([line])
    assert not has_results(labs[3], workspace, TINY, "")
    workspace.ledger.append([Measurement("accuracy", "exact_match", 0.9, "bf16", "tiny", lab="03_evaluation")])
    assert has_results(labs[3], workspace, TINY, "")


def test_labs_that_need_each_other_are_refused(tmp_path: Path) -> None:
    write_lab(tmp_path, "01_a", needs=["02_b"])
    write_lab(tmp_path, "02_b", needs=["01_a"])
    labs = find_labs(tmp_path)
    with pytest.raises(UsageError, match="01_a -> 02_b -> 01_a"):
        with_needed(labs, labs, lambda lab: False)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(("77",)), "there is no lab '77'"),
        (Request(profile="big"), "there is no profile 'big'"),
        (Request(parameters=(("profile", "big"),)), "there is no profile 'big'"),
        (Request(profile="tiny", parameters=(("profile", "workbench"),)), "profile is given twice"),
        (Request(parameters=(("limt", "5"),)), "no lab of this run has a parameter 'limt'"),
        (Request(parameters=(("limit", "five"),)), "'limit' can't be 'five'"),
        (Request(parameters=(("limit", "-5"),)), "limit is -5"),
        (Request(parameters=(("data", "/no/such/folder"),)), "data is '/no/such/folder', which is no folder"),
        (Request(jobs=0), "jobs is 0"),
        (Request(timeout_seconds=0), "timeout is 0"),
        (Request(timeout_seconds=float("nan")), "timeout is nan"),
        (Request(output="/dev/null"), "the output /dev/null is not a folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_use_is_found_before_anything_is_written(
    notebooks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request_: Request, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=said):
        prepare(request_, notebooks)
    assert [path.name for path in tmp_path.iterdir()] == ["notebooks"]


def test_a_profile_may_be_given_as_a_parameter_as_papermill_users_do(notebooks: Path) -> None:
    assert prepare(Request(("00",), parameters=(("profile", "workbench"),)), notebooks).profile.name == "workbench"


def test_a_relative_folder_means_the_same_in_the_labs_folder(
    notebooks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    pairs = (("model", "models/mine"), ("data", "data"))
    prepared = prepare(Request(("00",), parameters=pairs), notebooks)
    assert prepared.parameters == {"model": str(tmp_path / "models" / "mine"), "data": str(tmp_path / "data")}


@pytest.mark.parametrize(
    ("given", "meant"),
    [("published/mine", "{here}/published/mine"), ("s3://bucket/mine", "s3://bucket/mine"), ("hub:me/it", "hub:me/it")],
)
def test_a_target_folder_is_counted_from_where_the_command_stands(
    given: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lab(tmp_path / "notebooks", "07_publish", parameters='profile = ""\nworkspace = ""\ntarget = ""')
    monkeypatch.chdir(tmp_path)
    prepared = prepare(Request(("07",), parameters=(("target", given),)), tmp_path / "notebooks")
    assert prepared.parameters["target"] == meant.format(here=tmp_path)


def test_the_embedded_model_is_not_taken_for_a_folder_of_its_name(
    notebooks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert prepare(Request(("00",), parameters=(("model", "tiny"),)), notebooks).parameters["model"] == "tiny"


def test_a_hub_id_is_left_as_it_is(notebooks: Path) -> None:
    prepared = prepare(Request(("00",), parameters=(("model", "Qwen/Qwen3-0.6B"),)), notebooks)
    assert prepared.parameters["model"] == "Qwen/Qwen3-0.6B"


def test_labs_side_by_side_are_refused_on_a_gpu() -> None:
    refuse_shared_gpu(1, 1)
    refuse_shared_gpu(2, 0)
    with pytest.raises(UsageError, match="jobs is 2 on a machine with 1 GPU"):
        refuse_shared_gpu(2, 1)
