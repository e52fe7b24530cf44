"""Files and folders: what stands under its final name is whole, and what was damaged since is found."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from labkit.errors import CheckpointError
from labkit.files import MANIFEST, publishing, verify_manifest


def publish(final: Path, **files: str) -> None:
    with publishing(final, made_by="a test") as stage:
        for name, text in files.items():
            (stage / name).write_text(text)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_published_folder_holds_its_files_and_a_manifest_and_a_new_save_replaces_it_whole(tmp_path: Path) -> None:
    final = tmp_path / "new" / "fp8"
    publish(final, weights="w", leftover="c")
    with publishing(final, made_by="another") as stage:
        (stage / "sub").mkdir()
        (stage / "sub" / "file").write_text("x")
    assert names(tmp_path / "new") == {"fp8"}
    assert names(final) == {"sub", MANIFEST}
    manifest = verify_manifest(final)
    assert manifest["made_by"] == "another"
    assert {name: facts["bytes"] for name, facts in manifest["files"].items()} == {"sub/file": 1}


def test_a_save_that_still_runs_is_not_cleaned_up_by_another_of_the_same_name(tmp_path: Path) -> None:
    with publishing(tmp_path / "fp8") as first:
        (first / "weights").write_text("first")
        publish(tmp_path / "fp8", weights="second")
        assert (first / "weights").read_text() == "first"
    assert (tmp_path / "fp8" / "weights").read_text() == "first"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "weights is missing"),
        (lambda path: path.write_bytes(b"abc"), "weights has 3 bytes, not 4"),
        (lambda path: path.write_bytes(b"abce"), r"weights .*SHA-256 differs"),
        (lambda path: (path.parent / MANIFEST).write_text("{}"), f"{MANIFEST} is damaged"),
    ],
    ids=["missing", "cut", "flipped", "the manifest"],
)
@pytest.mark.parametrize("check", [verify_manifest, partial(verify_manifest, quick=True)])
def test_a_damaged_file_is_found_and_named(
    tmp_path: Path, damage: Callable[[Path], object], said: str, check: Callable[[Path], object]
) -> None:
    publish(tmp_path / "fp8", weights="abcd")
    check(tmp_path / "fp8")
    damage(tmp_path / "fp8" / "weights")
    with pytest.raises(CheckpointError, match=said):
        check(tmp_path / "fp8")


def test_a_folder_without_a_manifest_is_not_taken_for_whole(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"has no {MANIFEST}"):
        verify_manifest(tmp_path)
