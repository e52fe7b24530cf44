"""What all tests share: one run of the labs, which every test marked `labs` reads and none changes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from labkit.ledger import Ledger
from labkit.ops.notebooks import Lab, find_labs
from labkit.workspace import Workspace
from tests.watching import Seen, watched

ROOT = Path(__file__).parent.parent
NEWCOMER = "newcomers_labs"  # the fixture below
# Secrets as a workbench has them. The labs may use them and must not tell them.
CANARIES = {
    name: f"canary-{name.lower().replace('_', '-')}-7f3a91"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "VLLM_API_KEY")
}
SHARED_DATA = ROOT.parent / "shared" / "data"
LABS_SECONDS = 3000  # at most, for the run of the labs and a test that reads it: busy machines take twice the usual
LABS = find_labs(ROOT / "notebooks")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; children would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class LabsRun:
    """One `labkit run` on the tiny profile, with CANARIES in its environment, and what was seen of it.

    labs: those that it was asked for, and whatever they need is among them.
    """

    labs: tuple[Lab, ...]
    returncode: int
    stdout: str
    workspace: Workspace
    output: Path
    seen: Seen

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.output / "report.json").read_text())
        return report

    @property
    def ledger(self) -> Ledger:
        return self.workspace.ledger


def clean_environment(**more: str) -> dict[str, str]:
    """This environment without LABKIT_ variables, so that a developer's settings reach no test.

    Without those, too, that opening a lab sets in its process: a test that did leaves them behind.
    """
    unwanted = re.compile("LABKIT_.*|HF_HUB_OFFLINE|HF_DATASETS_OFFLINE")
    return {name: value for name, value in os.environ.items() if not unwanted.fullmatch(name)} | more


@pytest.fixture(scope="session")
def labs_run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> LabsRun:
    """The labs, run once: by `labkit run --jobs 2`, in the long tier by `make labs` on a new clone, one by one.

    CI's tier does without the lab that measures speed: it takes longest.
    """
    readers = [item for item in request.session.items if {"labs_run", NEWCOMER} & _fixtures(item)]
    if any(NEWCOMER in _fixtures(item) for item in readers):
        made: LabsRun = request.getfixturevalue(NEWCOMER)
        return made
    whole = any(item.get_closest_marker("long") for item in readers)
    labs = tuple(lab for lab in LABS if whole or not lab.alone)
    root = tmp_path_factory.mktemp("labs")
    command = [sys.executable, "-m", "labkit.ops.cli", "run", *(lab.name for lab in labs), "--jobs", "2"]
    command += ["--workspace", str(root / "workspace"), "--output", str(root / "out")]
    returncode, said, seen = _run(command, ROOT, clean_environment(**CANARIES))
    return LabsRun(labs, returncode, said, Workspace(root / "workspace"), root / "out", seen)


def each_lab() -> list[Any]:
    """The labs' names, for a test of each that reads `labs_run`."""
    return [pytest.param(lab.name, marks=[pytest.mark.long] if lab.alone else []) for lab in LABS]


@pytest.fixture(scope="session")
def newcomers_labs(tmp_path_factory: pytest.TempPathFactory) -> LabsRun:
    """`make labs` on a copy of what git holds, with the environment of somebody who has nothing set up."""
    clone = tmp_path_factory.mktemp("newcomer") / "clone"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    ours = ("LABKIT_", "VIRTUAL_ENV", "PYTHON", "MAKE", "ARGS")  # `make test-all ARGS=...` hands them all down
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment["PATH"] = ":".join(p for p in environment["PATH"].split(":") if not p.startswith(sys.prefix))
    returncode, said, seen = _run(["make", "labs"], clone, environment | CANARIES)
    workspace = Workspace(clone / "workspace")
    return LabsRun(tuple(LABS), returncode, said, workspace, (workspace.runs / "latest").resolve(), seen)


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[int, str, Seen]:
    """Exit code and output of a command that ends with the tests, whatever ends them; and what was seen of it."""
    with (
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as running,
        watched(running.pid, CANARIES) as seen,
    ):
        try:
            said, _ = running.communicate()
        except BaseException:  # out of time, or Ctrl-C: it would run on beside the other tests
            running.terminate()
            try:
                running.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                running.kill()
            raise
    return running.returncode, said, seen


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets beside the project; a test that needs it is skipped where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real data sets are not here ({SHARED_DATA})")
    return SHARED_DATA


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever test comes first makes the run of the labs, so each that reads it has the time for that."""
    for item in items:
        if {"labs_run", NEWCOMER} & _fixtures(item) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LABS_SECONDS))


def _fixtures(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))
