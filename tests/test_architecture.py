"""The floors: a module imports only from below its own, and heavy libraries wait until they are needed.

Read from the sources by `ast`, so that an import inside a function counts too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "labkit"

# A room is a module or a package directly under labkit; inside a room imports are free.
FLOORS: tuple[set[str], ...] = (
    {"errors", "guard"},
    {"ledger", "manifest", "profiles", "processes", "quiet", "hardware", "memory", "numerics", "tiny"}
    | {"localdata", "hubdata", "activations", "chatter", "estimates", "padding", "gptqlog", "lastblock"},
    {"modelfolder", "faster"},
    {"workspace", "engine", "rows", "simulation"},
    {"transfer", "pace"},
    {"calibration", "checkpoint", "evaluation", "perplexity", "serving"},
    {"compare", "quantize", "divergence", "tokenized"},
    {"zeroquant", "card"},
    {"figures", "checks", "publish"},
    {"explorers", "scorecard"},
    {"lab"},
    {"pipeline"},
    {"ops"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
VOCABULARY = "labkit"  # labkit/__init__.py: may name anything, and no room may import from it

HEAVY = {
    "boto3",
    "compressed_tensors",
    "datasets",
    "httpx",
    "huggingface_hub",
    "ipywidgets",
    "llmcompressor",
    "lm_eval",
    "matplotlib",
    "torch",
    "transformers",
    "vllm",
}
TRAINING = ("labkit.tiny.documents", "labkit.tiny.scores", "labkit.tiny.train")
OWNERS = ("labkit.numerics", "labkit.simulation", *TRAINING)  # pure torch, and what the training script alone imports
# run by path, by an interpreter that may have no labkit; what they may then import
STANDALONE = {
    "labkit.guard": set(),
    "labkit.engine.child": {"vllm", "torch"},
    "labkit.engine.forkserver": set(),
    "labkit.engine.imported": {"vllm", "torch", "numpy"},
    "labkit.pipeline.definition": {"kfp"},
}


def module_name(path: Path, package: Path = PACKAGE) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """`labkit.ops.cli` is in ops."""
    return module.split(".")[1] if "." in module else VOCABULARY


def imported(source: str) -> set[str]:
    """Every module that a source imports anywhere; `from labkit import x` counts as labkit.x."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            names = {f"labkit.{alias.name}" for alias in node.names} if node.module == "labkit" else {node.module or ""}
            found |= names
    return found


def imports_upwards(module: str, source: str) -> list[str]:
    """A sentence for every import that does not lead to a floor below."""
    room = room_of(module)
    found = []
    for target in sorted(name for name in imported(source) if name.split(".")[0] == "labkit"):
        other = room_of(target)
        if room in (VOCABULARY, other):
            continue
        if other not in FLOOR:
            found.append(f"{module} imports {target}, which is the vocabulary or a room without a floor")
        elif FLOOR[other] >= FLOOR[room]:
            found.append(f"{module} (floor {FLOOR[room]}) imports {target} (floor {FLOOR[other]})")
    return found


def at_import(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, but for `if TYPE_CHECKING`."""
    for node in nodes:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from at_import(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef | ast.For | ast.While):
            for field in ("body", "orelse", "finalbody"):
                yield from at_import(getattr(node, field, []))
            for handler in getattr(node, "handlers", []):
                yield from at_import(handler.body)


def heavy_at_import(source: str) -> set[str]:
    """The heavy libraries that importing a module would import."""
    imports = [node for node in at_import(ast.parse(source).body) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {name.split(".")[0] for node in imports for name in imported(ast.unparse(node))} & HEAVY


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_room_has_a_floor() -> None:
    assert {room_of(module) for module in MODULES} - {VOCABULARY} <= FLOOR.keys()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_floors_below_its_own(module: str) -> None:
    assert imports_upwards(module, MODULES[module].read_text()) == []


def test_an_import_upwards_is_noticed_wherever_it_stands() -> None:
    inside = "def f():\n    from labkit.lab import Lab\n"
    assert imports_upwards("labkit.memory", inside) == ["labkit.memory (floor 1) imports labkit.lab (floor 10)"]
    assert len(imports_upwards("labkit.ledger", "from labkit import profiles")) == 1, "the same floor, another room"
    assert len(imports_upwards("labkit.lab", "from labkit import open_lab")) == 1, "the vocabulary"
    assert imports_upwards("labkit.checkpoint.save", "from labkit.checkpoint import load\nimport labkit.errors") == []


@pytest.mark.parametrize("module", [module for module in MODULES if not module.startswith(OWNERS)])
def test_heavy_libraries_are_imported_when_called_not_when_the_module_is(module: str) -> None:
    assert heavy_at_import(MODULES[module].read_text()) == set()


def test_a_heavy_import_is_noticed_and_a_lazy_or_typing_one_forgiven() -> None:
    assert heavy_at_import("try:\n    import torch.nn as nn\nexcept ImportError:\n    pass\n") == {"torch"}
    assert heavy_at_import("class A:\n    from vllm import LLM\n") == {"vllm"}
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import vllm\n"
    assert heavy_at_import(lazy) == set()


def test_importing_labkit_and_its_light_modules_loads_no_heavy_library() -> None:
    """What the sources say, seen in a fresh interpreter: also through a third library."""
    light = [module for module in MODULES if not module.startswith(OWNERS) and module not in STANDALONE]
    loaded = f"print(*sorted({HEAVY!r} & set(sys.modules)))"
    code = f"import importlib, sys\nfor m in {light!r}: importlib.import_module(m)\n{loaded}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", STANDALONE)
def test_what_runs_without_labkit_imports_the_standard_library_and_what_it_is_there_to_start(name: str) -> None:
    roots = {module.split(".")[0] for module in imported(MODULES[name].read_text())}
    assert roots - set(sys.stdlib_module_names) == STANDALONE[name]
