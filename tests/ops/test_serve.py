"""`labkit serve` at a shell: the line that it prints works, and nothing of it stays when it is stopped."""

from __future__ import annotations

import re
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.cli import main
from labkit.errors import UsageError
from labkit.ops.serve import find_checkpoint
from labkit.store import Workspace
from tests.conftest import LABKIT, ROOT, clean_environment
from tests.models import make_model
from tests.processes_left import MARKER, marked, wait_until


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace(tmp_path_factory.mktemp("serve"))
    make_model(workspace.checkpoints / "fp8-dynamic")
    return workspace


@pytest.fixture
def marker() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def serving(workspace: Workspace, marker: str) -> Iterator[subprocess.Popen[str]]:
    """The command, just started; ended after the test whatever happens."""
    words = ["serve", "fp8-dynamic", "--workspace", str(workspace.root), "--eager", "--", "--max-num-seqs", "4"]
    env = clean_environment(**{MARKER: marker})
    env.pop("VLLM_API_KEY", None)
    with subprocess.Popen([*LABKIT, *words], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM])
def test_the_printed_line_works_and_a_signal_ends_all_of_it(
    serving: subprocess.Popen[str], marker: str, number: signal.Signals
) -> None:
    lines: list[str] = []
    while "Ctrl-C stops it" not in "".join(lines):
        lines.append(serving.stdout.readline())
        assert lines[-1], lines
    (curl,) = [line.strip() for line in lines if line.strip().startswith("curl ")]
    done = subprocess.run(["bash", "-c", f"{curl} -sS --fail"], capture_output=True, text=True, check=False)
    assert '"completion_tokens"' in done.stdout, done.stderr
    key_file = Path(re.search(r"\$\(cat (\S+)\)", curl).group(1))
    assert key_file.stat().st_mode & 0o077 == 0, "others could read the key"
    assert key_file.read_text() not in "".join(lines)
    (log,) = re.findall(r"log (\S+)\)", "".join(lines))
    assert "max_num_seqs" in Path(log).read_text(), "what stands after -- reaches vLLM"
    serving.send_signal(number)
    assert serving.wait(60) == 128 + number
    assert wait_until(lambda: not marked(marker))
    assert not key_file.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["absent"], "'absent' is no folder with a config.json"),
        (["fp8-dynamic", "--port", "80"], "port is 80"),
        (["fp8-dynamic", "--profile", "huge"], "there is no profile 'huge'"),
    ],
)
def test_wrong_use_ends_with_two_before_anything_starts(
    workspace: Workspace, options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options, "--workspace", str(workspace.root), "--eager"]) == 2
    assert words in capsys.readouterr().err


def test_a_checkpoint_is_a_folder_or_a_name_in_the_workspace(workspace: Workspace) -> None:
    folder = workspace.checkpoints / "fp8-dynamic"
    assert find_checkpoint("fp8-dynamic", workspace) == find_checkpoint(str(folder), workspace) == folder
    with pytest.raises(UsageError, match="name one of: fp8-dynamic"):
        find_checkpoint("larger", workspace)
