"""Readers and parsers take anything: they return, or raise an error of labkit's own that says what to do.

What a coverage-guided run of ten minutes found worth keeping lies in `corpus/` and is read again here; `fuzz.py` is
that run.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from labkit.errors import LabError
from labkit.ledger import Ledger, Measurement
from labkit.ops.notebooks import find_labs, parse_value, select_labs
from labkit.profiles import Parameters, get_profile
from labkit.store import Workspace
from labkit.transfer import parse, refuse_plain_http, refuse_unsafe_name
from tests.conftest import ROOT
from tests.faults.count import Fault
from tests.faults.readers import READERS

CORPUS = Path(__file__).with_name("corpus")
SHA256 = "0" * 64
WORDS = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["", "..", "../x", "~nobody/x", "\x00", "\ud800", "a" * 5000, "s3://", "hub:", "http://[", "-1"]),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
many = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def some_of(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects that have some of the fields, each with a value as it should be or with any."""
    return st.fixed_dictionaries({}, optional={name: value | JSON for name, value in fields.items()})


def framed(header: Any, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def line(fields: Any) -> bytes:
    whole = {"kind": "size", "metric": "bytes", "value": 1, "variant": "bf16", "model": "tiny"}
    return json.dumps(whole | fields if isinstance(fields, dict) else fields).encode() + b"\n"


TENSOR = some_of(
    dtype=st.sampled_from(["BF16", "I8", "F8_E4M3", "F4"]),
    shape=st.lists(st.integers(-2, 2**40), max_size=4),
    data_offsets=st.lists(st.integers(-2, 2**70), min_size=2, max_size=2),
)
FILES = st.dictionaries(WORDS, some_of(bytes=st.integers(), sha256=st.just(SHA256)) | JSON, max_size=4)
FIELDS = ("kind", "metric", "value", "variant", "model", "n", "settings", "purpose")
# Files that are nearly as they should be; of the other readers any JSON.
NEARLY = {
    "safetensors": st.builds(framed, st.dictionaries(st.text(max_size=8), TENSOR | JSON, max_size=4), st.binary()),
    "manifest": st.builds(lambda files: json.dumps({"files": files}).encode(), FILES | JSON),
    "ledger": st.builds(line, some_of(**dict.fromkeys(FIELDS, JSON)) | JSON),
}
STUBBORN = {
    "index": [{"weight_map": {"w": "a" * 5000}}, {"weight_map": {"w": "../model.safetensors"}}],
    "manifest": [{"files": {name: {"bytes": 1, "sha256": SHA256}}} for name in ("a" * 5000, "../../etc/passwd")],
}


@pytest.mark.parametrize("reader", READERS)
def test_what_was_found_once_is_read(reader: str, fault: Fault) -> None:
    kept = [path.read_bytes() for path in sorted((CORPUS / reader).glob("*.bin"))]
    for data in [*kept, *(json.dumps(value).encode() for value in STUBBORN.get(reader, []))]:
        fault.injected()
        READERS[reader](data)


@pytest.mark.parametrize("reader", READERS)
@many
@given(data=st.binary(max_size=400))
@example(data=b"[" * 100_000)
@example(data=b'{"a": ' * 50_000)
@example(data=b'{"kind": "size", "metric": "a", "variant": "b", "model": "c", "value": 1' + b"0" * 400 + b"}\n")
def test_any_bytes_are_read_or_refused(fault: Fault, reader: str, data: bytes) -> None:
    fault.injected()
    READERS[reader](data)


@pytest.mark.parametrize("reader", READERS)
@many
@given(drawn=st.data())
def test_anything_that_nearly_is_what_it_should_be_is_read_or_refused(
    fault: Fault, reader: str, drawn: st.DataObject
) -> None:
    fault.injected()
    READERS[reader](drawn.draw(NEARLY.get(reader, JSON.map(lambda value: json.dumps(value).encode() + b"\n"))))


@many
@given(value=st.floats(), settings_=st.dictionaries(st.text(max_size=8), JSON, max_size=3))
def test_whatever_the_ledger_takes_it_gives_back(tmp_path: Path, fault: Fault, value: float, settings_: Any) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    before = len(ledger.read())
    measurement = Measurement("size", "bytes", value, "bf16", "tiny", settings=settings_)
    fault.injected()
    try:
        ledger.append([measurement])
    except ValueError:  # NaN and infinity, which JSON has not
        assert len(ledger.read()) == before
    else:
        assert ledger.read()[-1] == measurement


@many
@given(text=WORDS, default=st.sampled_from(["", 0, 1.5, True, [1], None]))
@example(text="(" * 3000, default=[1])
@example(text="9" * 5000, default=0)
@example(text="nan", default=1.5)
def test_any_parameter_is_taken_as_its_type_or_refused(fault: Fault, text: str, default: Any) -> None:
    fault.injected()
    with contextlib.suppress(LabError):
        assert default is None or type(parse_value("limit", text, default)) is type(default)


@many
@given(word=WORDS)
def test_any_name_is_taken_or_refused(tmp_path: Path, fault: Fault, word: str) -> None:
    """Labs, profiles, variants, parameters, endpoints, addresses and S3 keys, as people type them."""
    labs = find_labs(ROOT / "notebooks")
    fault.injected()
    for take in (
        lambda: select_labs(labs, [word]),
        lambda: get_profile(word),
        lambda: Workspace(tmp_path).checkpoint(word),
        lambda: Parameters(limit=word).resolved(),
        lambda: Parameters(model=word, data=word, target=word).resolved(),
        lambda: refuse_plain_http(word, "AWS_S3_ENDPOINT", "AWS_CA_BUNDLE"),
        *(lambda prefix=prefix: parse(prefix + word) for prefix in ("", "s3://bucket/", "hub:")),
    ):
        with contextlib.suppress(LabError):
            take()


@many
@given(name=WORDS)
def test_a_key_that_is_let_through_stays_below_its_folder(tmp_path: Path, fault: Fault, name: str) -> None:
    fault.injected()
    try:
        refuse_unsafe_name(name, "s3://bucket")
    except LabError:
        return
    assert os.path.normpath(tmp_path / name).startswith(f"{tmp_path}{os.sep}")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
