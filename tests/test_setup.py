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


def test_setup_installs_the_lock_and_labkit_and_then_has_nothing_to_do(project: Path) -> None:
    first = make(project, "labs", "LOCK=cpu", "PROFILE=workbench", "ARGS=01")
    assert first.returncode == 0, first.stderr
    assert first.stdout.endswith("labkit run --profile workbench 01\n")
    assert {"torch=2.0+cpu", "stack=1.0", "labkit=1"} <= set(ask(project, VERSIONS).split())
    again = make(project, "labs", "LOCK=cpu")
    assert again.stdout == "labkit run\n", (
        "nothing changed, so setup has nothing to say; the profile is labkit's default"
    )


def test_another_lock_makes_a_new_environment_with_nothing_of_the_old_one(project: Path) -> None:
    assert make(project, "setup", "LOCK=cpu").returncode == 0
    changed = make(project, "setup", "LOCK=gpu")
    assert changed.returncode == 0, changed.stderr
    found = set(ask(project, VERSIONS).split())
    assert "stack=2.0" in found
    assert not any(name.startswith("torch=") for name in found)


def test_another_pyproject_installs_labkit_again_and_keeps_the_rest(project: Path) -> None:
    assert make(project, "setup", "LOCK=cpu").returncode == 0
    (project / ".venv" / "kept").touch()
    (project / "pyproject.toml").write_text(PYPROJECT.format(version="2"))
    assert make(project, "setup", "LOCK=cpu").returncode == 0
    assert "labkit=2" in ask(project, VERSIONS).split()
    assert (project / ".venv" / "kept").exists()


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
    running = subprocess.Popen(
        ["make", "setup", "LOCK=cpu"], cwd=project, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while list((project / ".venv").glob(".ready-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not list((project / ".venv").glob(".ready-*"))
    assert make(project, "setup", "LOCK=cpu").returncode == 0
    assert {"stack=3.0", "labkit=1"} <= set(ask(project, VERSIONS).split())


@pytest.mark.long
def test_a_lock_line_without_a_hash_is_refused(project: Path) -> None:
    (project / "requirements" / "cpu.txt").write_text("stack==1.0\n")
    refused = make(project, "setup", "LOCK=cpu")
    assert refused.returncode != 0
    assert "require-hashes" in refused.stderr
    assert "stack==1.0" in refused.stderr


def test_torch_is_looked_for_where_pip_is_configured_and_then_in_pytorchs_cpu_index(project: Path) -> None:
    """Without the wheel and without an index both tries fail, and the first one's reason is shown."""
    next((project / "wheels").glob("torch-*")).unlink()
    failed = make(project, "setup", "LOCK=cpu")
    assert failed.returncode != 0
    assert "asking PyTorch's CPU index" in failed.stdout
    assert "No matching distribution found for torch==2.0+cpu" in failed.stderr
    shown = make(project, "--dry-run", "setup", "LOCK=cpu").stdout
    assert "--index-url https://download.pytorch.org/whl/cpu -r requirements/torch-cpu.txt" in shown


def test_a_missing_python_311_is_a_clear_error_that_says_what_to_do(project: Path) -> None:
    refused = make(project, "labs", "LOCK=cpu", PYTHON="/nonexistent/python3.11")
    assert refused.returncode != 0
    assert "No Python 3.11 with its venv module is on the PATH (PYTHON=/nonexistent/python3.11)" in refused.stderr
    assert "make PYTHON=" in refused.stderr
    assert not (project / ".venv").exists()


def test_an_unknown_lock_is_refused_before_anything_runs(project: Path) -> None:
    refused = make(project, "labs", "LOCK=tpu")
    assert refused.returncode != 0
    assert 'LOCK is "tpu"; use LOCK=cpu or LOCK=gpu' in refused.stderr
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
    assert make(project, "setup", "LOCK=cpu").returncode == 0
    for made in ("workspace/checkpoints/bf16", ".ruff_cache", "labkit/__pycache__"):
        (project / made).mkdir(parents=True, exist_ok=True)
    assert make(project, "clean", "LOCK=cpu").returncode == 0
    left = sorted(str(path.relative_to(project)) for path in project.rglob("*") if path.is_file())
    assert [name for name in left if not name.startswith("wheels/")] == [
        "Makefile",
        "backend.py",
        "labkit/__init__.py",
        "pyproject.toml",
        "requirements/cpu.txt",
        "requirements/gpu.txt",
        "requirements/kfp.txt",
        "requirements/torch-cpu.txt",
    ]


def test_help_names_every_target(project: Path) -> None:
    shown = make(project, "help").stdout
    for target in ("setup", "labs", "lab", "test", "test-all", "lint", "lock", "bench", "clean"):
        assert f"make {target} " in shown


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
    assert shown.stdout.startswith("make test\n")
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
