"""`make` sets up an environment once, whole, and from the right lock.

Most tests here run the real Makefile, venv and pip on a small project: its locks name wheels that the test makes, so
that a setup takes seconds and needs no index.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.conftest import LabsRun

ROOT = Path(__file__).parents[1]
PYPROJECT = """[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "labkit"
version = "{version}"
"""
# A build backend that knows one thing, an editable install, because a bare venv has no current setuptools.
BACKEND = """import pathlib, tomllib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    version = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["project"]["version"]
    name, info = f"labkit-{version}-py3-none-any.whl", f"labkit-{version}.dist-info"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as archive:
        archive.writestr("labkit.pth", str(pathlib.Path.cwd()))
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\\nName: labkit\\nVersion: {version}\\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(f"{info}/entry_points.txt", "[console_scripts]\\nlabkit = labkit:main\\n")
        archive.writestr(f"{info}/RECORD", "")
    return name
"""
LABKIT = "import sys\n\n\ndef main():\n    print('labkit', *sys.argv[1:])\n"


def wheel(folder: Path, name: str, version: str) -> str:
    """Makes a wheel with one module; gives back its line for a lock."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with this Makefile whose locks name small wheels in `wheels/`."""
    root = tmp_path / "a project"
    (root / "requirements").mkdir(parents=True)
    (root / "wheels").mkdir()
    shutil.copy(ROOT / "Makefile", root)
    (root / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "install.py", root / "tools")
    (root / "pyproject.toml").write_text(PYPROJECT.format(version="1"))
    (root / "backend.py").write_text(BACKEND)
    (root / "labkit").mkdir()
    (root / "labkit" / "__init__.py").write_text(LABKIT)
    (root / "requirements" / "torch-cpu.txt").write_text(wheel(root / "wheels", "torch", "2.0+cpu"))
    (root / "requirements" / "cpu.txt").write_text(wheel(root / "wheels", "stack", "1.0"))
    (root / "requirements" / "gpu.txt").write_text(wheel(root / "wheels", "stack", "2.0"))
    (root / "requirements" / "kfp.txt").write_text(wheel(root / "wheels", "kfp", "1.0"))
    return root


def make(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs make with pip cut off from every index but the project's wheels."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE", "LABKIT_", "ARGS"))
    }
    wheels = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": (root / "wheels").as_uri(), "PIP_CONFIG_FILE": os.devnull}
    environment = {**inherited, **wheels, "PYTHON": sys.executable, **variables}
    return subprocess.run(["make", *arguments], cwd=root, env=environment, capture_output=True, text=True)


def ask(root: Path, code: str) -> str:
    """What the project's environment prints."""
    python = root / ".venv" / "bin" / "python"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, cwd=root).stdout.strip()


VERSIONS = "import importlib.metadata as m; print(*sorted(f'{d.name}={d.version}' for d in m.distributions()))"


def test_setup_installs_what_changed_and_nothing_else(project: Path) -> None:
    first = make(project, "labs", "LOCK=cpu", "PROFILE=workbench", "ARGS=01")
    assert first.returncode == 0, first.stderr
    assert first.stdout.endswith("labkit run --profile workbench 01\n")
    assert {"torch=2.0+cpu", "stack=1.0", "labkit=1"} <= set(ask(project, VERSIONS).split())
    assert make(project, "labs", "LOCK=cpu").stdout == "labkit run\n", "nothing changed; labkit has a default profile"
    (project / ".venv" / "kept").touch()
    (project / "pyproject.toml").write_text(PYPROJECT.format(version="2"))
    assert make(project, "setup", "LOCK=cpu").returncode == 0
    assert "labkit=2" in ask(project, VERSIONS).split()
    assert (project / ".venv" / "kept").exists()
    assert make(project, "setup", "LOCK=gpu").returncode == 0
    found = ask(project, VERSIONS)
    assert "stack=2.0" in found.split()
    assert "torch=" not in found, "another lock makes a new environment"
    assert not (project / ".venv" / "kept").exists()


@pytest.mark.long
def test_a_setup_that_failed_is_not_taken_for_finished(project: Path) -> None:
    lock = project / "requirements" / "cpu.txt"
    right = lock.read_text()
    lock.write_text(right.replace("sha256:", "sha256:0", 1).rstrip()[:-1] + "\n")
    failed = make(project, "labs", "LOCK=cpu")
    assert failed.returncode != 0
    assert "hash" in failed.stderr.lower()
    assert "labkit run" not in failed.stdout
    assert make(project, "labs", "LOCK=cpu").returncode != 0, "the second try must not find it done"
    lock.write_text(right)
    assert make(project, "labs", "LOCK=cpu").stdout.endswith("labkit run\n")


def test_a_setup_that_was_killed_is_not_taken_for_finished(project: Path) -> None:
    assert make(project, "setup", "LOCK=cpu").returncode == 0
    (project / "requirements" / "cpu.txt").write_text(wheel(project / "wheels", "stack", "3.0"))
    wheels = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": (project / "wheels").as_uri(), "PIP_CONFIG_FILE": os.devnull}
    environment = {**os.environ, **wheels, "PYTHON": sys.executable}
    quiet = {"stdout": subprocess.DEVNULL, "start_new_session": True}
    running = subprocess.Popen(["make", "setup", "LOCK=cpu"], cwd=project, env=environment, **quiet)
    deadline = time.monotonic() + 120
    while list((project / ".venv").glob(".ready-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not list((project / ".venv").glob(".ready-*"))
    assert make(project, "setup", "LOCK=cpu").returncode == 0
    assert {"stack=3.0", "labkit=1"} <= set(ask(project, VERSIONS).split())


def test_what_is_nowhere_is_said_by_every_way_that_was_tried(project: Path) -> None:
    """This project's locks have no uv, so pip looks where it is configured to, and then in PyTorch's CPU index."""
    next((project / "wheels").glob("torch-*")).unlink()
    failed = make(project, "setup", "LOCK=cpu")
    assert failed.returncode != 0
    assert "requirements/torch-cpu.txt could not be installed" in failed.stderr
    assert failed.stderr.count("No matching distribution found for torch==2.0+cpu") == 2
    assert "--index-url https://download.pytorch.org/whl/cpu" in failed.stderr
    assert "labkit run" not in failed.stdout


def test_uv_installs_from_where_pip_is_configured_to_look_and_checks_hashes_as_pip_does(project: Path) -> None:
    """The environment of these tests has uv; pip's configuration names the project's wheels and nothing else."""
    configured = project / "pip.conf"
    configured.write_text(f"[global]\nno-index = true\nfind-links = {(project / 'wheels').as_uri()}\n")
    venv = project / ".venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment = {**inherited, "PIP_CONFIG_FILE": str(configured)}
    lock = project / "requirements" / "cpu.txt"
    command = [sys.executable, ROOT / "tools" / "install.py", lock, "--python", venv / "bin" / "python"]
    assert subprocess.run(command, env=environment).returncode == 0
    (record,) = venv.glob("lib/python3.11/site-packages/stack-1.0.dist-info/INSTALLER")
    assert record.read_text().strip() == "uv"
    lock.write_text(wheel(project / "wheels", "stack", "3.0").replace("sha256:", "sha256:0", 1)[:-2] + "\n")
    refused = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "uv pip install" in refused.stderr
    assert refused.stderr.lower().count("hash") >= 2, "uv refuses it, and so does pip"
    assert "stack=1.0" in ask(project, VERSIONS)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (("PYTHON=/none/python3.11",), "No Python 3.11 with its venv module is on the PATH (PYTHON=/none/python3.11)"),
        (("LOCK=tpu",), 'LOCK is "tpu"; use LOCK=cpu or LOCK=gpu'),
    ],
)
def test_what_make_can_not_use_is_refused_before_anything_runs(
    project: Path, variables: tuple[str, ...], said: str
) -> None:
    refused = make(project, "labs", "LOCK=cpu", *variables)
    assert refused.returncode != 0
    assert said in refused.stderr
    assert not (project / ".venv").exists()


@pytest.mark.parametrize(
    ("says", "lock"), [("GPU 0: NVIDIA L4 (UUID: GPU-1)", "gpu"), ("No devices were found", "cpu")]
)
def test_a_gpu_found_at_setup_chooses_the_lock(project: Path, says: str, lock: str) -> None:
    """nvidia-smi may be there without a GPU; what it lists counts."""
    tool = project / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "{says}"\n')
    tool.chmod(0o755)
    shown = make(project, "--dry-run", "setup", PATH=f"{tool.parent}:{os.environ['PATH']}")
    assert f"from requirements/{lock}.txt" in shown.stdout


@pytest.mark.long
def test_clean_removes_what_make_made_and_nothing_else(project: Path) -> None:
    before = {path.relative_to(project) for path in project.rglob("*") if path.is_file()}
    assert make(project, "setup", "LOCK=cpu").returncode == 0
    for made in ("workspace/checkpoints/bf16", ".ruff_cache", "labkit/__pycache__"):
        (project / made).mkdir(parents=True, exist_ok=True)
    assert make(project, "clean", "LOCK=cpu").returncode == 0
    assert {path.relative_to(project) for path in project.rglob("*") if path.is_file()} == before


def test_without_a_browser_and_a_way_to_install_one_it_says_what_to_do(project: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "make", "cat", "cut", "grep", "id", "mktemp", "rm", "sha256sum", "tail"):
        (tools / name).symlink_to(str(shutil.which(name)))
    failed = make(project, "chromium", PATH=str(tools))
    assert failed.returncode != 0
    assert "Install the package chromium, or leave its tests out: CHROMIUM=none" in failed.stderr
    assert make(project, "chromium", "CHROMIUM=none", PATH=str(tools)).returncode == 0


def test_ci_runs_the_readmes_test_command() -> None:
    shown = subprocess.run(
        ["bash", ".ci/run"], cwd=ROOT, env={**os.environ, "MAKEFLAGS": "n"}, capture_output=True, text=True
    )
    assert shown.returncode == 0
    assert [line for line in shown.stdout.splitlines() if line.startswith("make ")] == ["make lint", "make test"]
    assert 'pytest -m "not long"' in shown.stdout


@pytest.mark.long
@pytest.mark.labs
@pytest.mark.timeout(3600)
def test_make_labs_on_a_fresh_clone_sets_up_and_passes_every_lab(newcomers_labs: LabsRun) -> None:
    """The whole first experience. In the long tier all tests that read a run of all labs read this one."""
    assert newcomers_labs.returncode == 0, newcomers_labs.stdout[-5000:]
    for lab in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        assert f"{lab.stem}" in newcomers_labs.stdout
    assert "report.html" in newcomers_labs.stdout
    clone = newcomers_labs.workspace.root.parent
    status = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True)
    assert status.stdout == ""
