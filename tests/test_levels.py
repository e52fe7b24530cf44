"""The labs and the tests without an engine, as on lesser CPUs than this one: `shared/tools/as-cpu` pretends them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.hardware.machine import LEVELS, this_machine
from tests.conftest import LABS_SECONDS, ROOT, clean_environment

AS_CPU = ROOT.parent / "shared" / "tools" / "as-cpu"
WITHOUT_ENGINE = ("tests/memory", "tests/hardware", "tests/numerics")
MOST_BYTES = 6e9

pytestmark = [
    pytest.mark.skipif(not AS_CPU.is_file(), reason="shared/tools/as-cpu is not beside this checkout"),
    pytest.mark.timeout(LABS_SECONDS),
]


def levels(*asked: str) -> list[object]:
    """A parameter for each level; one that this machine doesn't have is skipped."""
    has = {name: feature in this_machine().features for name, feature, _ in LEVELS}
    return [
        pytest.param(name, marks=[] if has[name] else [pytest.mark.skip(reason=f"this CPU has no {name}")])
        for name in asked
    ]


def as_cpu(level: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(AS_CPU), level, sys.executable, "-m", *words]
    return subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True)


def run_labs(level: str, folder: Path, *words: str) -> dict[str, object]:
    """A run's report; every lab of it passed."""
    output = folder / "out"
    done = as_cpu(level, "labkit.ops.cli", "run", *words, "--workspace", str(folder / "ws"), "--output", str(output))
    assert done.returncode == 0, done.stdout[-3000:]
    report = json.loads((output / "report.json").read_text())
    assert report["level"] == level
    assert {lab["verdict"] for lab in report["labs"]} == {"passed"}
    assert max(lab["peak_bytes"] for lab in report["labs"]) < MOST_BYTES
    return dict(report)


@pytest.mark.parametrize("level", levels("avx2", "vnni"))
def test_what_needs_no_engine_expects_nothing_of_the_cpu(level: str) -> None:
    done = as_cpu(level, "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long", *WITHOUT_ENGINE)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("level", levels("avx2", "vnni"))
def test_the_labs_that_quantize_and_evaluate_pass_and_a_short_one_that_measures_speed(
    level: str, tmp_path: Path
) -> None:
    run_labs(level, tmp_path, "01", "03")  # and lab 02, whose checkpoints lab 03 reads
    run_labs(level, tmp_path, "04", "-p", "limit", "8")


@pytest.mark.long
@pytest.mark.parametrize("level", levels("avx2", "avx512", "vnni", "bf16"))
def test_every_lab_passes_at_every_level_of_this_machine(level: str, tmp_path: Path) -> None:
    run_labs(level, tmp_path)
