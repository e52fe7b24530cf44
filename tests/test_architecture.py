"""Heavy libraries wait until they are needed, and every file can be read in one sitting.

That modules import only from floors below is a contract of import-linter: `pyproject.toml`, held by `make lint`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "labkit"
LONGEST_FILE = 450  # lines: what one reads in a sitting
HEAVY = {"boto3", "compressed_tensors", "datasets", "huggingface_hub", "ipywidgets", "llmcompressor", "lm_eval"}
HEAVY |= {"httpx", "matplotlib", "torch", "transformers", "vllm"}
TEACHING = ("labkit.numerics", "labkit.simulation")  # pure torch
# Run by path, by an interpreter that may have no labkit: what they import beside the standard library.
STANDALONE: dict[str, set[str]] = {"labkit.guard": set(), "labkit.pipeline.definition": {"kfp"}}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
LIGHT = [name for name in MODULES if not name.startswith(TEACHING) and name not in {*STANDALONE, "labkit.mends"}]


def test_importing_labkit_and_its_light_modules_loads_no_heavy_library() -> None:
    loaded = f"print(*sorted({HEAVY!r} & set(sys.modules)))"
    code = f"import importlib, sys\nfor m in {LIGHT!r}: importlib.import_module(m)\n{loaded}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", STANDALONE)
def test_what_runs_without_labkit_imports_the_standard_library_and_what_it_is_there_to_start(name: str) -> None:
    imports = [n for n in ast.walk(ast.parse(MODULES[name].read_text())) if isinstance(n, ast.Import | ast.ImportFrom)]
    roots = {
        named.split(".")[0]
        for n in imports
        for named in ([n.module or ""] if isinstance(n, ast.ImportFrom) else [alias.name for alias in n.names])
    }
    assert roots - set(sys.stdlib_module_names) == STANDALONE[name]


def test_every_file_can_be_read_in_one_sitting() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}
