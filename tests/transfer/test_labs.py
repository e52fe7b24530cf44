"""A checkpoint that the labs made, to every kind of place and back; and the keys that turn up nowhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labkit.files import MANIFEST, verify_manifest
from tests.conftest import ROOT, LabsRun, clean_environment
from tests.transfer.conftest import BUCKET, CANARY, Store, labkit, use_hub
from tests.transfer.hub_stand_in import TOKEN

pytestmark = pytest.mark.labs
Run = Callable[..., str]


@pytest.fixture
def run(
    labs_run: LabsRun, bare: Any, shared_hub: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., str]:
    """The command line with keys for all places, in the labs' workspace; returns what it said."""
    use_hub(monkeypatch, shared_hub)

    def said(*words: str) -> str:
        where = {"LABKIT_WORKSPACE": str(labs_run.workspace.root), "PYTHONPATH": str(ROOT)}
        done = labkit(*words, env=clean_environment(**where), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return said


@pytest.mark.parametrize("target", ["published/fp8-dynamic", f"s3://{BUCKET}/models/fp8", "hub:workshop/tiny-fp8"])
def test_a_labs_checkpoint_goes_out_and_comes_back_identical(
    target: str, run: Run, labs_run: LabsRun, tmp_path: Path
) -> None:
    said = run("publish", "fp8-dynamic", target) + run("fetch", target, "copy")
    sent = verify_manifest(labs_run.workspace.checkpoint("fp8-dynamic"))
    came = verify_manifest(tmp_path / "copy")
    card = came["files"].pop("README.md")
    assert card["bytes"] > 1000
    assert came == sent
    assert CANARY not in said
    assert TOKEN not in said


def test_keys_turn_up_nowhere_in_a_workspace_that_published(run: Run, labs_run: LabsRun, tmp_path: Path) -> None:
    """Notebooks, logs, reports, cards, ledger: with keys in the environment of the lab that publishes."""
    workspace, output, target = tmp_path / "workspace", tmp_path / "out", "hub:workshop/from-a-lab"
    workspace.mkdir()
    for part in ("checkpoints", "results"):  # read only; the ledger is written to
        os.symlink(labs_run.workspace.root / part, workspace / part)
    shutil.copy(labs_run.workspace.ledger.path, workspace)
    run("run", "07", "--workspace", str(workspace), "--output", str(output), "-p", "target", target)
    run("fetch", target, "from-a-lab")
    assert (tmp_path / "from-a-lab" / MANIFEST).is_file()
    places = (workspace, output, tmp_path / "from-a-lab")
    contents = {path: path.read_bytes() for place in places for path in place.rglob("*") if path.is_file()}
    assert [path for path, data in contents.items() if CANARY.encode() in data or TOKEN.encode() in data] == []
    kinds = {"07_publish.ipynb", "07_publish.html", "07_publish.log", "report.json", "report.html", "junit.xml"}
    assert {path.name for path in contents} >= kinds | {"ledger.jsonl", "README.md", "recipe.yaml", MANIFEST}
