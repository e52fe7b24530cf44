"""The ledger: whole lines only, the newest counts, and nothing is skipped silently."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import DataError, UsageError
from labkit.ledger import Ledger, Measurement
from tests.full_disk import run_with_room

SCORE = Measurement(
    "accuracy",
    "exact_match",
    0.94,
    "bf16",
    "tiny",
    task="tiny_problems",
    stderr=0.011,
    n=500,
    time="2026-11-29T12:00:00.000+00:00",
)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "workspace" / "ledger.jsonl")


def test_a_ledger_that_is_not_there_is_empty_and_what_was_appended_is_read_back_in_order(ledger: Ledger) -> None:
    assert ledger.read() == []
    other = replace(SCORE, variant="fp8-dynamic", settings={"limit": 500, "template": True}, versions={"vllm": "0.32"})
    ledger.append([SCORE])
    ledger.append([other, SCORE])
    assert ledger.read() == [SCORE, other, SCORE]
    assert set(json.loads(ledger.path.read_text().splitlines()[0])) == {f.name for f in fields(Measurement)}


@settings(max_examples=50, deadline=None)
@given(st.text(), st.dictionaries(st.text(), st.integers() | st.text() | st.booleans(), max_size=4))
def test_any_text_survives_on_a_single_line(tmp_path_factory: pytest.TempPathFactory, text: str, options: dict) -> None:
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "ledger.jsonl")
    written = replace(SCORE, task=text, settings=options)
    ledger.append([written])
    assert ledger.path.read_bytes().count(b"\n") == 1
    assert ledger.read() == [written]


def test_a_value_that_is_not_a_number_is_refused_and_nothing_is_written(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        ledger.append([SCORE, replace(SCORE, value=float("nan"))])
    assert ledger.read() == []


@pytest.mark.parametrize(("field", "value"), [("kind", "accurcy"), ("purpose", "headlines")])
def test_an_unknown_kind_or_purpose_is_refused_with_the_known_ones(field: str, value: str) -> None:
    with pytest.raises(UsageError, match=rf"{field} is '{value}'[\s\S]*use one of"):
        replace(SCORE, **{field: value})


def test_the_newest_measurement_of_a_thing_counts_and_another_setting_is_another_thing(ledger: Ledger) -> None:
    first = replace(SCORE, settings={"limit": 5, "seed": 0})
    again = replace(first, settings={"seed": 0, "limit": 5}, value=0.95)
    named = ("model", "variant", "task", "backend", "metric")
    others = [replace(first, value=0.5, **{name: "another"}) for name in named]
    ledger.append([first, *others, replace(first, value=0.5, settings={"limit": 100}), again])
    assert [m.value for m in ledger.headlines()] == [0.95, *[0.5] * 6]


def test_headlines_are_no_traps_and_can_be_those_of_one_run_or_one_variant(ledger: Ledger) -> None:
    ledger.append([replace(SCORE, run="a"), replace(SCORE, run="b", value=0.5, variant="int8-rtn")])
    ledger.append([replace(SCORE, value=0.1, purpose="trap"), replace(SCORE, value=0.2, purpose="sweep")])
    assert [m.value for m in ledger.headlines()] == [0.94, 0.5]
    assert [m.value for m in ledger.newest(purpose="trap")] == [0.1]
    assert [m.variant for m in ledger.headlines(run="b")] == ["int8-rtn"]
    assert [m.run for m in ledger.headlines(variant="bf16")] == ["a"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("{not json}\n", "line 2 is no measurement: Expecting"),
        ("\n", "line 2 is no measurement: Expecting"),
        ("[1, 2]\n", "line 2 is no measurement"),
        ('{"kind": "accuracy"}\n', "line 2 is no measurement: .*missing .*'value'"),
        (json.dumps(SCORE.__dict__ | {"score": 1}) + "\n", "line 2 is no measurement: .*unexpected .* 'score'"),
        (json.dumps(SCORE.__dict__ | {"kind": "luck"}) + "\n", "line 2 is no measurement: kind is 'luck'"),
        (json.dumps(SCORE.__dict__ | {"n": "many"}) + "\n", "line 2 is no measurement: n can't be what it holds"),
        (json.dumps(SCORE.__dict__)[:-10], r"line 2 has no end[\s\S]*delete that last line"),
    ],
)
def test_a_damaged_line_stops_the_reader_with_its_number(ledger: Ledger, damage: str, said: str) -> None:
    ledger.append([SCORE])
    with open(ledger.path, "a") as file:
        file.write(damage)
    if damage.endswith("\n"):
        ledger.append([SCORE])
    with pytest.raises(DataError, match=said):
        ledger.read()


def test_labs_that_write_at_the_same_time_lose_no_line(ledger: Ledger) -> None:
    code = f"""
import pathlib, sys
from labkit.ledger import Ledger, Measurement
for i in range(30):
    m = Measurement("accuracy", "exact_match", i, sys.argv[1], "tiny", settings={{"padding": "x" * 3000}})
    Ledger(pathlib.Path({str(ledger.path)!r})).append([m, m])
"""
    writers = [subprocess.Popen([sys.executable, "-c", code, name]) for name in ("a", "b", "c")]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    read = ledger.read()
    for name in ("a", "b", "c"):
        assert [m.value for m in read if m.variant == name] == [i for i in range(30) for _ in range(2)]


def test_a_full_disk_loses_the_new_line_whole_and_no_earlier_one(ledger: Ledger) -> None:
    ledger.append([SCORE])
    before = ledger.path.read_bytes()
    code = f"""
import pathlib
from labkit.errors import DataError
from labkit.ledger import Ledger, Measurement
try:
    Ledger(pathlib.Path({str(ledger.path)!r})).append([Measurement("size", "bytes", 1, "bf16", "tiny")] * 5)
except DataError as error:
    print(error)
"""
    done = run_with_room([sys.executable, "-c", code], len(before) + 700)
    assert "could not be written" in done.stdout, done.stderr
    assert ledger.path.read_bytes() == before
    assert {path.name for path in ledger.path.parent.iterdir()} == {"ledger.jsonl", ".ledger.jsonl.lock"}
