"""Saves and appends that are killed or find no room: the whole result, or none."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.errors import DataError
from labkit.files import publishing, put_in_place, verify_manifest
from labkit.ledger import Ledger, Measurement
from tests.conftest import ROOT
from tests.faults.count import Fault
from tests.full_disk import run_with_room

KILLS = 100
SIZE = Measurement("size", "bytes", 1, "bf16", "tiny")
LONGEST_SECONDS = 0.08  # after the first save; one takes some milliseconds

# A checkpoint of two files, saved again and again by a process that imports no torch.
SAVING = """
import json, os, sys
from pathlib import Path
from labkit.files import publishing
for number in range(10_000):
    with publishing(Path(sys.argv[1]), number=number) as stage:
        (stage / "model.safetensors").write_bytes(os.urandom(200_000))
        (stage / "config.json").write_text(json.dumps({"number": number}))
    assert "torch" not in sys.modules
    if number == 0:
        print("saved", flush=True)
"""
APPENDING = """
import sys
from pathlib import Path
from labkit.ledger import Ledger, Measurement
for number in range(100_000):
    Ledger(Path(sys.argv[1])).append([Measurement("size", "bytes", number, "bf16", "tiny", settings={"x": "y" * 500})])
    if number == 0:
        print("saved", flush=True)
"""


def killed_at_random(code: str, fault: Fault, chance: random.Random, *arguments: str) -> None:
    """Runs a program until it has saved once, and kills it a random moment later."""
    command = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=fault.environment()) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "saved\n"
        time.sleep(chance.uniform(0, LONGEST_SECONDS))
        fault.kill(child.pid)


@pytest.mark.parametrize("kills", [10, pytest.param(KILLS, marks=pytest.mark.long)])
def test_a_save_that_is_killed_leaves_a_whole_checkpoint(tmp_path: Path, fault: Fault, kills: int) -> None:
    """The first save has ended before each kill, so there is always one: the old or the new."""
    final, chance = tmp_path / "checkpoints" / "fp8", random.Random(kills)
    for _ in range(kills):
        killed_at_random(SAVING, fault, chance, str(final))
        manifest = verify_manifest(final)
        assert json.loads((final / "config.json").read_text()) == {"number": manifest["number"]}
    with publishing(final):
        pass
    assert os.listdir(final.parent) == [final.name], "the next save clears what was left behind"
    fault.nothing_left()


@pytest.mark.parametrize("kills", [5, pytest.param(KILLS, marks=pytest.mark.long)])
def test_a_ledger_whose_writer_is_killed_loses_no_line_and_tears_none(tmp_path: Path, fault: Fault, kills: int) -> None:
    ledger, chance = Ledger(tmp_path / "ledger.jsonl"), random.Random(kills)
    for _ in range(kills):
        before = ledger.path.read_bytes() if ledger.path.exists() else b""
        killed_at_random(APPENDING, fault, chance, str(ledger.path))
        assert ledger.path.read_bytes().startswith(before)
        assert ledger.read()
    fault.nothing_left()


KILLED_WITHIN = """
import os, signal, sys
from pathlib import Path
from labkit.ledger import Ledger, Measurement
write, replace = Path.write_bytes, Path.replace

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[2] == "half a write":
    Path.write_bytes = lambda path, data: die(write(path, data[: len(data) // 2]))
if sys.argv[2] == "a whole one":
    Path.replace = die
if sys.argv[2] == "the rename":
    Path.replace = lambda path, to: die(replace(path, to))
Ledger(Path(sys.argv[1])).append([Measurement("size", "bytes", number, "bf16", "tiny") for number in (2, 3)])
"""


@pytest.mark.parametrize(("after", "there"), [("half a write", []), ("a whole one", []), ("the rename", [2, 3])])
def test_lines_whose_writer_is_killed_within_the_write_are_all_there_or_none(
    tmp_path: Path, fault: Fault, after: str, there: list[int]
) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([SIZE])
    fault.injected()
    done = subprocess.run([sys.executable, "-c", KILLED_WITHIN, str(ledger.path), after], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [m.value for m in ledger.read()] == [1, *there]
    ledger.append([replace(SIZE, value=4)])
    assert [m.value for m in ledger.read()] == [1, *there, 4]
    assert {path.name for path in tmp_path.iterdir()} == {"ledger.jsonl", ".ledger.jsonl.lock"}


def test_a_folder_takes_the_place_of_another_in_one_step(tmp_path: Path, fault: Fault) -> None:
    """Without a moment in which there is none: a name to put the older one aside is not needed."""
    for name in ("old", "new"):
        (tmp_path / name / name).mkdir(parents=True)
    fault.injected()
    put_in_place(tmp_path / "new", tmp_path / "old", tmp_path / "there is no such folder" / "aside")
    assert (os.listdir(tmp_path), os.listdir(tmp_path / "old")) == (["old"], ["new"])


def test_a_torn_line_stays_alone(tmp_path: Path, fault: Fault) -> None:
    """A machine that lost its power can leave half a line; the next one must not be glued to it and lost as well."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([SIZE])
    with open(ledger.path, "a") as file:
        file.write('{"kind": "si')
    fault.injected()
    with fault.keeps(ledger.path), pytest.raises(DataError, match="line 2 has no end"):
        ledger.append([SIZE])


def test_a_disk_that_fills_during_a_save_leaves_the_older_checkpoint(tmp_path: Path, fault: Fault) -> None:
    final = tmp_path / "fp8"
    with publishing(final, number=0) as stage:
        (stage / "weights").write_bytes(b"good")
    code = f"""
import pathlib
from labkit.files import publishing
with publishing(pathlib.Path({str(final)!r}), number=1) as stage:
    (stage / "weights").write_bytes(b"x" * 1_000_000)
"""
    fault.injected()
    with fault.keeps(final):
        done = run_with_room([sys.executable, "-c", code], 500_000)
    assert "File too large" in done.stderr
    assert os.listdir(tmp_path) == ["fp8"]
