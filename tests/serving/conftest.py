"""One server for all tests that only talk to it; tests that end one start their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.profiles import TINY
from labkit.serving import Server, serve
from tests.models import make_model

ENGINE = replace(TINY.engine, max_model_len=512)  # eager: a compiler would take a minute


@pytest.fixture(scope="package")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights: what these tests ask does not depend on the answers."""
    return make_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="package")  # not longer: other tests look for processes left
def server(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serve(served, engine=ENGINE, log=folder / "server.log", name="small") as running:
        yield running
