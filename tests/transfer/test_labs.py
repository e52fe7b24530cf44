"""A checkpoint that the labs made, to every kind of place and back; and the keys that turn up nowhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit.manifest import MANIFEST, verify_manifest
from tests.conftest import ROOT, LabsRun, clean_environment
from tests.transfer.conftest import BUCKET, CANARY, Store, hub_stand_in
from tests.transfer.hub_stand_in import TOKEN

pytestmark = pytest.mark.labs


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with hub_stand_in(tmp_path_factory.mktemp("hub")) as found:
        yield found


@pytest.fixture
def labkit(labs_run: LabsRun, bare: Any, hub: Store, tmp_path: Path) -> Callable[..., str]:
    """The command line in an empty folder, with keys for all places; returns what it said."""
    keys = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    environment = clean_environment(LABKIT_WORKSPACE=str(labs_run.workspace.root), PYTHONPATH=str(ROOT), **keys)

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "labkit.ops.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.parametrize("target", ["published/fp8-dynamic", f"s3://{BUCKET}/models/fp8", "hub:workshop/tiny-fp8"])
def test_a_labs_checkpoint_goes_out_and_comes_back_identical(
    target: str, labkit: Callable[..., str], labs_run: LabsRun, tmp_path: Path
) -> None:
    said = labkit("publish", "fp8-dynamic", target) + labkit("fetch", target, "copy")
    sent = verify_manifest(labs_run.workspace.checkpoint("fp8-dynamic"))
    came = verify_manifest(tmp_path / "copy")
    card = came["files"].pop("README.md")
    assert card["bytes"] > 1000
    assert came == sent
    assert CANARY not in said
    assert TOKEN not in said


@pytest.mark.parametrize("target", [f"s3://{BUCKET}/from-a-lab", "hub:workshop/from-a-lab"])
def test_keys_turn_up_nowhere_in_a_workspace_that_published(
    target: str, labkit: Callable[..., str], labs_run: LabsRun, tmp_path: Path
) -> None:
    """Notebooks, logs, reports, cards, ledger: with keys in the environment of the lab that publishes."""
    workspace, output = tmp_path / "workspace", tmp_path / "out"
    workspace.mkdir()
    for part in ("checkpoints", "results"):  # read only; the ledger is written to
        os.symlink(labs_run.workspace.root / part, workspace / part)
    shutil.copy(labs_run.workspace.ledger.path, workspace)
    words = ("run", "07", "--workspace", str(workspace), "--output", str(output))
    labkit(*words, "-p", "target", target)
    labkit("fetch", target, "from-a-lab")
    assert (tmp_path / "from-a-lab" / MANIFEST).is_file()
    looked_at = set()
    for path in [*workspace.rglob("*"), *output.rglob("*"), *(tmp_path / "from-a-lab").rglob("*")]:
        if path.is_file():
            looked_at.add(path.name)
            content = path.read_bytes()
            assert CANARY.encode() not in content, path
            assert TOKEN.encode() not in content, path
    kinds = {"07_publish.ipynb", "07_publish.html", "07_publish.log", "report.json", "report.html", "junit.xml"}
    assert looked_at >= kinds | {"ledger.jsonl", "README.md", "recipe.yaml", "model.safetensors", MANIFEST}
