"""The workspace: found from anywhere, and what stands under its final name is whole."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from labkit.errors import CheckpointError, UsageError
from labkit.manifest import MANIFEST, read_manifest, verify_manifest
from labkit.workspace import Workspace, find_workspace, publishing, write_atomically
from tests.full_disk import run_python_with_room
from tests.processes_left import wait_until


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LABKIT_WORKSPACE", raising=False)


@pytest.fixture
def course(tmp_path: Path) -> Path:
    (tmp_path / "notebooks" / "deep").mkdir(parents=True)
    (tmp_path / "notebooks" / "00_start_here.ipynb").write_text("{}")
    return tmp_path


def publish(final: Path, **files: str) -> None:
    with publishing(final, made_by="a test") as stage:
        for name, text in files.items():
            (stage / name).write_text(text)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- where it is


@pytest.mark.parametrize("below", [".", "notebooks", "notebooks/deep"])
def test_the_default_is_beside_the_notebooks_wherever_one_stands(course: Path, below: str) -> None:
    assert find_workspace(start=course / below) == course / "workspace"


def test_an_argument_goes_before_the_environment_and_that_before_the_default(
    course: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(course)
    assert find_workspace() == Path(__file__).parents[1] / "workspace"  # this checkout's, not the current folder's
    monkeypatch.setenv("LABKIT_WORKSPACE", "elsewhere")
    assert find_workspace(start=course) == course / "elsewhere"
    assert find_workspace("/given") == Path("/given")


def test_a_home_folder_can_be_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/learner")
    assert find_workspace("~/labs") == Path("/home/learner/labs")


def test_a_checkpoint_of_the_own_model_is_named_by_its_variant_and_of_another_by_both(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.checkpoint("int8-rtn") == tmp_path / "checkpoints" / "int8-rtn"
    assert workspace.checkpoint("int8-rtn", "Qwen3-8B").name == "Qwen3-8B--int8-rtn"


@pytest.mark.parametrize("name", ["../escape", "a/b", ".hidden", "with space", "-dash"])
def test_a_name_that_would_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="can't name a checkpoint"):
        Workspace(tmp_path).checkpoint("bf16", name)


def test_a_run_has_a_folder_named_by_the_time_and_latest_points_to_the_newest(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "new")
    first, second = workspace.new_run(), workspace.new_run()
    assert re.fullmatch(r"\d{8}T\d{6}\.\d{3}Z", first.name)
    assert sorted([first, second]) == [first, second]
    assert (workspace.runs / "latest").resolve() == second.resolve()


# --- publishing


def test_a_published_folder_holds_its_files_and_a_manifest_with_how_it_was_made(tmp_path: Path) -> None:
    publish(tmp_path / "new" / "fp8", weights="w", config="c")
    assert names(tmp_path / "new") == {"fp8"}
    assert names(tmp_path / "new" / "fp8") == {"weights", "config", MANIFEST}
    manifest = verify_manifest(tmp_path / "new" / "fp8")
    assert manifest["made_by"] == "a test"
    assert manifest["files"]["weights"]["bytes"] == 1
    assert set(manifest["files"]) == {"weights", "config"}


def test_an_error_while_saving_publishes_nothing_and_keeps_the_older_folder(tmp_path: Path) -> None:
    publish(tmp_path / "fp8", weights="old")
    with pytest.raises(FileNotFoundError), publishing(tmp_path / "fp8") as stage:
        (stage / "weights").write_text((tmp_path / "missing").read_text())
    assert names(tmp_path) == {"fp8"}
    assert (tmp_path / "fp8" / "weights").read_text() == "old"


def test_a_new_save_replaces_the_older_folder_whole(tmp_path: Path) -> None:
    publish(tmp_path / "fp8", weights="old", leftover="x")
    publish(tmp_path / "fp8", weights="new")
    assert names(tmp_path / "fp8") == {"weights", MANIFEST}
    verify_manifest(tmp_path / "fp8")


def test_a_killed_save_leaves_nothing_that_looks_finished_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    code = f"""
import pathlib, time
from labkit.workspace import publishing
with publishing(pathlib.Path({str(tmp_path / "fp8")!r})) as stage:
    (stage / "weights").write_text("half")
    (stage / "ready").touch()
    time.sleep(600)
"""
    saving = subprocess.Popen([sys.executable, "-c", code])
    assert wait_until(lambda: any(tmp_path.glob(".part-fp8-*/ready")))
    saving.send_signal(signal.SIGKILL)
    saving.wait()
    assert not (tmp_path / "fp8").exists()
    assert len(names(tmp_path)) == 1
    publish(tmp_path / "fp8", weights="whole")
    assert names(tmp_path) == {"fp8"}


def test_a_save_that_still_runs_is_not_cleaned_up_by_another_of_the_same_name(tmp_path: Path) -> None:
    with publishing(tmp_path / "fp8") as first:
        (first / "weights").write_text("first")
        publish(tmp_path / "fp8", weights="second")
        assert (first / "weights").read_text() == "first"
    assert (tmp_path / "fp8" / "weights").read_text() == "first"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b"abc"), "has 3 bytes, not 4"),
        (lambda path: path.write_bytes(b"abce"), "SHA-256 differs"),
    ],
    ids=["missing", "cut", "flipped"],
)
def test_a_damaged_file_is_found_and_named(tmp_path: Path, damage, said: str) -> None:
    publish(tmp_path / "fp8", weights="abcd")
    verify_manifest(tmp_path / "fp8")
    damage(tmp_path / "fp8" / "weights")
    with pytest.raises(CheckpointError, match=f"weights {said}|weights .*{said}"):
        verify_manifest(tmp_path / "fp8")


def test_files_in_folders_are_in_the_manifest_too(tmp_path: Path) -> None:
    with publishing(tmp_path / "fp8") as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "file").write_text("x")
    assert set(read_manifest(tmp_path / "fp8")["files"]) == {"sub/file"}


def test_a_folder_without_a_manifest_is_not_taken_for_whole(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"has no {MANIFEST}"):
        verify_manifest(tmp_path)


# --- small files


def test_a_text_file_is_replaced_whole_and_its_folder_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "runs" / "report.json", "old")
    write_atomically(tmp_path / "runs" / "report.json", json.dumps({"new": "ü"}, ensure_ascii=False))
    assert (tmp_path / "runs" / "report.json").read_text(encoding="utf-8") == '{"new": "ü"}'
    assert names(tmp_path / "runs") == {"report.json"}


def test_a_full_disk_keeps_the_older_file_and_leaves_no_part_of_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    code = f"""
import pathlib
from labkit.workspace import write_atomically
write_atomically(pathlib.Path({str(path)!r}), "x" * 5000)
"""
    done = run_python_with_room(code, file_bytes=1000)
    assert done.returncode == 1
    assert "OSError" in done.stderr
    assert path.read_text() == "old"
    assert names(tmp_path) == {"report.json"}
    assert os.access(path, os.W_OK)


def test_one_at_a_time_is_let_into_an_exclusive_block(tmp_path):
    workspace, order = Workspace(tmp_path), []
    inside, leave = threading.Event(), threading.Event()

    def first():
        with workspace.exclusive("bf16"):
            inside.set()
            leave.wait(20)
            order.append("first")

    def second():
        with workspace.exclusive("bf16"):
            order.append("second")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert inside.wait(20)
    threads[1].start()
    with workspace.exclusive("another name"):
        assert order == []
    leave.set()
    for thread in threads:
        thread.join(20)
    assert order == ["first", "second"]
