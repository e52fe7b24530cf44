"""The labs and the tests without an engine, as on lesser CPUs than this one: `shared/tools/as-cpu` pretends them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.hardware import LEVELS, this_machine
from tests.conftest import LABKIT, LABS_SECONDS, ROOT, clean_environment

AS_CPU = ROOT.parent / "shared" / "tools" / "as-cpu"
WITHOUT_ENGINE = ("tests/test_memory.py", "tests/test_hardware.py", "tests/test_matrix.py", "tests/numerics")
LOWEST, MOST_BYTES = "avx2", 6e9

pytestmark = [
    pytest.mark.skipif(not AS_CPU.is_file(), reason="shared/tools/as-cpu is not beside this checkout"),
    pytest.mark.timeout(LABS_SECONDS),
]


def levels(*asked: str) -> list[object]:
    """A parameter for each level; those above the lowest are for the long tier, and one that is not here is skipped."""
    has = {name: feature in this_machine().features for name, feature, _ in LEVELS}
    return [
        pytest.param(
            name,
            marks=[
                *([] if name == LOWEST else [pytest.mark.long]),
                pytest.mark.skipif(not has[name], reason=f"this CPU has no {name}"),
            ],
        )
        for name in asked
    ]


def as_cpu(level: str, *words: str) -> None:
    command = [str(AS_CPU), level, *words]
    done = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def run_labs(level: str, folder: Path, *words: str) -> None:
    """All that were asked for pass, within the memory that they may take."""
    as_cpu(level, *LABKIT, "run", *words, "--workspace", str(folder / "ws"), "--output", str(folder / "out"))
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["level"] == level
    assert {lab["verdict"] for lab in report["labs"]} == {"passed"}
    assert max(lab["peak_bytes"] for lab in report["labs"]) < MOST_BYTES


@pytest.mark.parametrize("level", levels("avx2", "vnni"))
def test_what_needs_no_engine_expects_nothing_of_the_cpu(level: str) -> None:
    as_cpu(level, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long", *WITHOUT_ENGINE)


def test_the_labs_that_quantize_evaluate_and_measure_speed_pass_on_the_least_cpu(tmp_path: Path) -> None:
    run_labs(LOWEST, tmp_path, "03", "04", "-p", "limit", "8")  # and labs 01 and 02, whose checkpoints lab 03 reads


@pytest.mark.long
@pytest.mark.parametrize("level", levels("avx2", "avx512", "vnni", "bf16"))
def test_every_lab_passes_at_every_level_of_this_machine(level: str, tmp_path: Path) -> None:
    run_labs(level, tmp_path)
