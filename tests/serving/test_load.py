"""vLLM's own benchmark against a real server: what it gives, and what happens when the server dies under it."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from labkit.errors import ProcessFailed, UsageError
from labkit.serving import Load, Loaded, Server, put_load, repeated, serve
from tests.processes_left import MARKER, marked
from tests.serving.conftest import ENGINE
from tests.serving.test_server import engine_core


def test_each_load_is_measured_and_told(server: Server, served: Path, tmp_path: Path) -> None:
    loads = [Load(1, 2, 16, 8), Load(4, 8, 16, 8)]
    ticks: list[int] = []
    first = server.loads
    found = put_load(server, loads, tokenizer=served, engine=ENGINE, log=tmp_path / "log", on_tick=ticks.append)
    assert [(one.load, one.seed) for one in found] == [(loads[0], first), (loads[1], first + 1)]
    for one in found:
        assert one.output_tok_per_s == pytest.approx(one.load.requests * 8 / one.wall_seconds, rel=1e-3)
        assert one.request_per_s == pytest.approx(one.load.requests / one.wall_seconds, rel=1e-3)
        assert not one.compiled
        assert 0 < one.ttft_ms <= one.ttft_p99_ms
        assert 0 < one.itl_ms <= one.itl_p99_ms
    assert set(ticks) <= {1, 2}
    assert server.key not in (tmp_path / "log").read_text()
    (later,) = put_load(server, loads[:1], tokenizer=served, engine=ENGINE, log=tmp_path / "log")
    assert later.seed == first + 2, "a later call would send the prompts of an earlier one, which the server has cached"


@pytest.mark.long
def test_a_load_may_be_put_on_a_server_that_is_still_starting(served: Path, tmp_path: Path) -> None:
    with serve(served, engine=ENGINE, log=tmp_path / "server.log", name="early", wait=False) as server:
        assert server.ready_seconds == 0
        (found,) = put_load(server, [Load(1, 1, 16, 8)], tokenizer=served, engine=ENGINE, log=tmp_path / "log")
        assert server.ready_seconds > 0
    assert found.output_tok_per_s > 0
    assert {path.name for path in tmp_path.iterdir()} == {"server.log", "log"}


def test_a_load_on_a_server_that_does_not_come_up_in_time_is_the_server_s_error(served: Path, tmp_path: Path) -> None:
    late = serve(served, engine=ENGINE, log=tmp_path / "server.log", name="late", wait=False, deadline_seconds=1)
    with late, pytest.raises(ProcessFailed, match=r"late on port \d+ was not ready within 1 s"):
        put_load(late, [Load(1, 1, 16, 8)], tokenizer=served, engine=ENGINE, log=tmp_path / "log")


def test_a_load_beyond_the_context_is_refused_before_anything_is_sent(
    server: Server, served: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="500 tokens in and 64 out are more than the engine's context of 512"):
        put_load(server, [Load(1, 1, 500, 64)], tokenizer=served, engine=ENGINE, log=tmp_path / "log")
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("field", range(4))
def test_a_load_of_nothing_is_refused(field: int) -> None:
    with pytest.raises(UsageError, match="is 0"):
        Load(*(0 if number == field else 1 for number in range(4)))


@pytest.mark.long
def test_a_server_that_dies_under_the_load_is_the_error_and_no_result_comes(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = uuid.uuid4().hex
    monkeypatch.setenv(MARKER, marker)
    with serve(served, engine=ENGINE, log=tmp_path / "server.log", name="mortal") as server:
        core = engine_core(server)

        def kill(done: int) -> None:
            if core.is_running():
                core.kill()

        loads = [Load(1, 1, 16, 8), Load(2, 2000, 16, 64)]
        with pytest.raises(ProcessFailed, match=r"the server of mortal on port \d+ died") as told:
            put_load(server, loads, tokenizer=served, engine=ENGINE, log=tmp_path / "log", on_tick=kill)
        assert str(tmp_path / "server.log") in told.value.fix
    assert marked(marker) == []


def test_a_repeated_figure_is_the_median_with_its_extremes() -> None:
    results = [Loaded(Load(1, 1, 1, 1), 0, 1.0, 1.0, speed, 1.0, 1.0, 1.0, 1.0, True) for speed in (3.0, 1.0, 2.0)]
    found = repeated(results, "output_tok_per_s")
    assert (found.median, found.low, found.high, found.repeats, found.compiled) == (2.0, 1.0, 3.0, 3, True)
