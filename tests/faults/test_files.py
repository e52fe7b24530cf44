"""Saves, appends and reports that are killed, find no room, or stand in odd places: the whole result, or none."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.errors import DataError
from labkit.ledger import Ledger, Measurement
from labkit.manifest import verify_manifest
from labkit.workspace import Workspace, publishing, put_in_place
from tests.conftest import ROOT
from tests.faults.count import Fault
from tests.full_disk import run_python_with_room

KILLS = 100
LONGEST_SECONDS = 0.08  # after the first save; one takes some milliseconds

# A checkpoint of synthetic tensors, saved again and again by a process that imports no torch.
SAVING = """
import json, os, struct, sys
from dataclasses import replace
from pathlib import Path
from labkit.workspace import publishing
final, naive = Path(sys.argv[1]), len(sys.argv) > 2
for number in range(10_000):
    data = os.urandom(200_000)
    header = json.dumps({"weight": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
    if naive:  # as a plain save does it: file after file, in place
        (final / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
        (final / "config.json").write_text(json.dumps({"number": number}))
    else:
        with publishing(final, number=number) as stage:
            (stage / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
            (stage / "config.json").write_text(json.dumps({"number": number}))
    assert "torch" not in sys.modules
    if number == 0:
        print("saved", flush=True)
"""
APPENDING = """
import sys
from dataclasses import replace
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


def test_the_kill_bites_a_save_that_is_not_guarded(tmp_path: Path, fault: Fault) -> None:
    """Otherwise the next test would show nothing."""
    chance, torn = random.Random(0), 0
    for _ in range(40):
        killed_at_random(SAVING, fault, chance, str(tmp_path), "naive")
        path = tmp_path / "model.safetensors"
        torn += path.stat().st_size < 200_000 or not (tmp_path / "config.json").read_text()
        if torn:
            break
    assert torn
    fault.nothing_left()


@pytest.mark.parametrize("kills", [10, pytest.param(KILLS, marks=pytest.mark.long)])
def test_a_save_that_is_killed_leaves_a_whole_checkpoint(tmp_path: Path, fault: Fault, kills: int) -> None:
    """The first save has ended before each kill, so there is always one: the old or the new."""
    final, chance, last = tmp_path / "checkpoints" / "fp8", random.Random(kills), -1
    for _ in range(kills):
        killed_at_random(SAVING, fault, chance, str(final))
        manifest = verify_manifest(final)
        assert json.loads((final / "config.json").read_text()) == {"number": manifest["number"]}
    with publishing(final, number=last) as stage:
        (stage / "config.json").write_text("{}")
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


LINE = Measurement("size", "bytes", 2, "bf16", "tiny")


@pytest.mark.parametrize("written", [0, 40, -1, None], ids=["nothing", "half", "all but its end", "all"])
@pytest.mark.parametrize("next_is", ["a reader", "a writer"])
def test_a_line_whose_writer_was_killed_within_the_write_is_finished_by_the_next_one(
    tmp_path: Path, fault: Fault, written: int | None, next_is: str
) -> None:
    """What such a kill leaves: the system stops a write where it crosses a page."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([Measurement("size", "bytes", 1, "bf16", "tiny")])
    before = ledger.path.read_bytes()
    ledger.append([LINE])
    data = ledger.path.read_bytes()[len(before) :]
    journal = tmp_path / ".part-ledger.jsonl"
    assert not journal.exists()
    journal.write_bytes(f"{len(before)} {hashlib.sha256(data).hexdigest()}\n".encode() + data)
    ledger.path.write_bytes(before + data[:written])
    fault.injected()
    if next_is == "a writer":
        ledger.append([replace(LINE, value=3)])
    assert [m.value for m in ledger.read()] == [1, 2] + [3] * (next_is == "a writer")
    assert not journal.exists()


@pytest.mark.parametrize("keep", [0, 1, 70, -1], ids=["empty", "a digit", "its head", "all but its end"])
def test_a_note_that_is_not_whole_changes_nothing(tmp_path: Path, fault: Fault, keep: int) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([LINE])
    note = f"0 {hashlib.sha256(b'x').hexdigest()}\nx".encode()
    (tmp_path / ".part-ledger.jsonl").write_bytes(note[:keep])
    fault.injected()
    with fault.keeps(ledger.path):
        assert ledger.read() == [LINE]


def test_a_note_of_a_ledger_that_was_edited_since_changes_nothing(tmp_path: Path, fault: Fault) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([LINE])
    size = ledger.path.stat().st_size
    for end in (size + 1, 0):  # the ledger is shorter than it was, or has more than the note added
        (tmp_path / ".part-ledger.jsonl").write_bytes(f"{end} {hashlib.sha256(b'x').hexdigest()}\nx".encode())
        fault.injected()
        with fault.keeps(ledger.path):
            assert ledger.read() == [LINE]


def test_a_folder_takes_the_place_of_another_in_one_step(tmp_path: Path, fault: Fault) -> None:
    """Without a moment in which there is none: a name to put the older one aside is not needed."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "which").write_text(name)
    fault.injected()
    put_in_place(tmp_path / "new", tmp_path / "old", tmp_path / "there is no such folder" / "aside")
    assert (tmp_path / "old" / "which").read_text() == "new"
    assert os.listdir(tmp_path) == ["old"]


def test_a_torn_line_stays_alone(tmp_path: Path, fault: Fault) -> None:
    """A machine that lost its power can leave half a line; the next one must not be glued to it and lost as well."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append([Measurement("size", "bytes", 1, "bf16", "tiny")])
    with open(ledger.path, "a") as file:
        file.write('{"kind": "si')
    fault.injected()
    with fault.keeps(ledger.path), pytest.raises(DataError, match="line 2 has no end"):
        ledger.append([Measurement("size", "bytes", 2, "bf16", "tiny")])


def test_a_disk_that_fills_during_a_save_leaves_the_older_checkpoint(tmp_path: Path, fault: Fault) -> None:
    final = tmp_path / "fp8"
    with publishing(final, number=0) as stage:
        (stage / "weights").write_bytes(b"good")
    code = f"""
import pathlib
from labkit.workspace import publishing
with publishing(pathlib.Path({str(final)!r}), number=1) as stage:
    (stage / "weights").write_bytes(b"x" * 1_000_000)
"""
    fault.injected()
    with fault.keeps(final):
        done = run_python_with_room(code, 500_000)
    assert "File too large" in done.stderr
    assert os.listdir(tmp_path) == ["fp8"]


@pytest.fixture(params=["with spaces and ünïcödé 模型", "a link"])
def odd_place(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    real = tmp_path / request.param
    if request.param != "a link":
        return real
    (tmp_path / "elsewhere").mkdir()
    real.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    return real


def test_a_workspace_in_an_odd_place_is_as_good_as_any(odd_place: Path, fault: Fault) -> None:
    fault.injected()
    workspace = Workspace(odd_place)
    for number in range(2):
        with publishing(workspace.checkpoint("fp8"), number=number) as stage:
            (stage / "config.json").write_text("{}")
        workspace.ledger.append([Measurement("size", "bytes", number, "fp8", "tiny")])
        run = workspace.new_run()
    assert verify_manifest(workspace.checkpoint("fp8"))["number"] == 1
    assert [m.value for m in workspace.ledger.read()] == [0, 1]
    assert (workspace.runs / "latest").resolve() == run.resolve()
    assert workspace.root.is_symlink() == odd_place.is_symlink()
