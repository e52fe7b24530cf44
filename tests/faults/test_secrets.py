"""Secrets stay in the environment, and nothing listens where others could reach it.

What a transfer tells of its keys stands in `tests/transfer`, what a server does with a wrong one in `test_serve.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.errors import LabError
from labkit.lab import Lab
from labkit.profiles import Parameters
from labkit.store import Context, Workspace
from tests.conftest import CANARIES, LabsRun
from tests.faults.count import Fault

LARGE_BYTES = 100_000_000  # of larger files, which are weights, only the headers are read


@pytest.mark.labs
def test_no_secret_of_the_environment_is_written_anywhere_by_any_lab(labs_run: LabsRun, fault: Fault) -> None:
    fault.injected(len(CANARIES))
    files = [
        path for place in (labs_run.workspace.root, labs_run.output) for path in place.rglob("*") if path.is_file()
    ]
    for path in files:
        with open(path, "rb") as file:
            data = file.read(LARGE_BYTES)
        assert [name for name, secret in CANARIES.items() if secret.encode() in data] == [], path
    assert len(files) > 100
    assert [name for name, secret in CANARIES.items() if secret in labs_run.stdout] == []


@pytest.mark.labs
def test_no_secret_stands_on_a_command_line_that_every_user_of_the_machine_can_read(labs_run: LabsRun) -> None:
    assert labs_run.seen.looks > 60
    assert labs_run.seen.leaks == set()


@pytest.mark.labs
def test_nothing_listens_where_another_machine_could_reach_it(labs_run: LabsRun) -> None:
    assert labs_run.seen.listeners > 0, "kernels and servers listen on the loopback"
    assert labs_run.seen.exposed == set()


def test_no_secret_stands_in_an_error(tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, secret in CANARIES.items():
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("AWS_S3_ENDPOINT", "http://127.0.0.1:9")
    lab = Lab("07_publish", Context(Workspace(tmp_path)), Parameters(model="s3://bucket/model"))
    fault.injected()
    with pytest.raises(LabError) as told:
        lab.base  # noqa: B018 (it is a property that fetches)
    chain, error = "", told.value
    while error:
        chain += f"{error!r} {error}"
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    assert [name for name, secret in CANARIES.items() if secret in chain] == []
