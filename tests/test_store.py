"""The workspace: found from anywhere, with a place for everything, and one at a time where that matters."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest

from labkit.errors import UsageError
from labkit.store import Workspace, find_workspace


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_WORKSPACE", raising=False)


def test_it_is_beside_the_notebooks_unless_the_environment_or_before_that_an_argument_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notebooks" / "deep").mkdir(parents=True)
    (tmp_path / "notebooks" / "00_start_here.ipynb").write_text("{}")
    for below in (".", "notebooks", "notebooks/deep"):
        assert find_workspace(start=tmp_path / below) == tmp_path / "workspace"
    monkeypatch.chdir(tmp_path)
    assert find_workspace() == Path(__file__).parents[1] / "workspace", "this checkout's, not the current folder's"
    monkeypatch.setenv("LABKIT_WORKSPACE", "elsewhere")
    assert find_workspace(start=tmp_path) == tmp_path / "elsewhere"
    monkeypatch.setenv("HOME", "/home/learner")
    assert find_workspace("~/labs") == Path("/home/learner/labs")


def test_a_checkpoint_is_named_by_its_variant_and_one_of_another_model_by_both(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.checkpoint("int8-rtn") == tmp_path / "checkpoints" / "int8-rtn"
    assert workspace.checkpoint("int8-rtn", "Qwen3-8B").name == "Qwen3-8B--int8-rtn"
    for name in ("../escape", "a/b", ".hidden", "with space", "-dash"):
        with pytest.raises(UsageError, match="can't name a checkpoint"):
            workspace.checkpoint("bf16", name)


def test_a_run_has_a_folder_named_by_the_time_and_latest_points_to_the_newest(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "new")
    first, second = workspace.new_run(), workspace.new_run()
    assert re.fullmatch(r"\d{8}T\d{6}\.\d{6}Z", first.name)
    assert first < second
    assert (workspace.runs / "latest").resolve() == second.resolve()


def test_one_at_a_time_is_let_into_an_exclusive_block(tmp_path: Path) -> None:
    workspace, order = Workspace(tmp_path), []

    def second() -> None:
        with workspace.exclusive("bf16"):
            order.append("second")

    thread = threading.Thread(target=second)
    with workspace.exclusive("bf16"):
        thread.start()
        with workspace.exclusive("another name"):
            thread.join(0.3)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
