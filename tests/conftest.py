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
from labkit.store import Workspace
from tests.watching import Seen, watched

TESTS = Path(__file__).parent
ROOT = TESTS.parent
LABKIT = (sys.executable, "-m", "labkit.cli")  # the command line, with this interpreter
NEWCOMER = "newcomers_labs"  # the fixture below
# Secrets as a workbench has them. The labs may use them and must not tell them.
CANARIES = {
    name: f"canary-{name.lower().replace('_', '-')}-7f3a91"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "VLLM_API_KEY")
}
SHARED_DATA = ROOT.parent / "shared" / "data"
LABS = find_labs(ROOT / "notebooks")
ROWS = 16  # of each kind, in CI's run of the labs
LABS_SECONDS = 3000  # at most, for a run of the labs and a test that reads it: busy machines take twice the usual
# What starts engines: with pytest-xdist one worker runs all of it, one after another.
BUSY = ("faults/test_engines", "ops/test_serve", "pipeline/", "test_engine", "test_evaluate")
BUSY += ("test_exercises", "test_levels", "test_measured", "test_serve", "test_workbench")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; children would ignore Ctrl-C, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True)
class LabsRun:
    """One `labkit run` of all labs on the tiny profile, with CANARIES in its environment, and what was seen of it.

    limit: rows of each kind; 0 for all that the profile has.
    """

    limit: int
    returncode: int
    stdout: str
    workspace: Workspace
    output: Path
    seen: Seen

    @property
    def labs(self) -> tuple[Lab, ...]:
        return LABS

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.output / "report.json").read_text())
        return report

    @property
    def ledger(self) -> Ledger:
        return self.workspace.ledger

    def rows(self, whole: int) -> int:
        """How many rows this run has where the profile has `whole`."""
        return min(self.limit, whole) if self.limit else whole


def clean_environment(**more: str) -> dict[str, str]:
    """This environment without LABKIT_ variables, so that a developer's settings reach no test.

    Without those, too, that opening a lab sets in its process: a test that did leaves them behind.
    """
    unwanted = re.compile("LABKIT_.*|HF_HUB_OFFLINE|HF_DATASETS_OFFLINE")
    return {name: value for name, value in os.environ.items() if not unwanted.fullmatch(name)} | more


@pytest.fixture(scope="session")
def labs_run(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> LabsRun:
    """The labs, run once: shortened to ROWS, two at a time; in the long tier whole, by `make labs` on a new clone."""
    readers = [item for item in request.session.items if _reads_the_labs(item)]
    if any(item.get_closest_marker("long") for item in readers):
        whole: LabsRun = request.getfixturevalue(NEWCOMER)
        return whole
    root = tmp_path_factory.mktemp("labs")
    command = [*LABKIT, "run", "--jobs", "2", "-p", "limit", str(ROWS)]
    command += ["--workspace", str(root / "workspace"), "--output", str(root / "out")]
    return LabsRun(ROWS, *_run(command, ROOT, clean_environment(**CANARIES), root / "workspace", root / "out"))


@pytest.fixture(scope="session")
def newcomers_labs(tmp_path_factory: pytest.TempPathFactory) -> LabsRun:
    """`make labs` on a copy of what git holds, with the environment of somebody who has nothing set up."""
    clone = tmp_path_factory.mktemp("newcomer") / "clone"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(clone)], check=True)
    ours = ("LABKIT_", "VIRTUAL_ENV", "PYTHON", "MAKE", "ARGS")  # `make test-all ARGS=...` hands them all down
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment["PATH"] = ":".join(p for p in environment["PATH"].split(":") if not p.startswith(sys.prefix))
    workspace = clone / "workspace"
    return LabsRun(0, *_run(["make", "labs"], clone, environment | CANARIES, workspace, workspace / "runs" / "latest"))


def _run(
    command: list[str], folder: Path, environment: dict[str, str], workspace: Path, output: Path
) -> tuple[int, str, Workspace, Path, Seen]:
    """Exit code and output of a command that ends with the tests, whatever ends them; what it made, what was seen."""
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
    return running.returncode, said, Workspace(workspace), output.resolve(), seen


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets beside the project; a test that needs it is skipped where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real data sets are not here ({SHARED_DATA})")
    return SHARED_DATA


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever test comes first makes the run of the labs, so each that reads it has the time for that.

    For pytest-xdist: a file's tests stay together, as they share fixtures; what is BUSY or reads the labs is one group.
    """
    for item in items:
        reads, file = _reads_the_labs(item), item.path.relative_to(TESTS).as_posix()
        if reads and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LABS_SECONDS))
        item.add_marker(pytest.mark.xdist_group("busy" if reads or file.startswith(BUSY) else file))


def _reads_the_labs(item: pytest.Item) -> bool:
    return bool({"labs_run", NEWCOMER} & set(getattr(item, "fixturenames", ())))
