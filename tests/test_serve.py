"""A real server: who may ask it, where it listens, that nothing of it stays; its speed, and an engine's without one."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from labkit.engine import engine_env
from labkit.errors import CheckpointError, ProcessFailed, UsageError
from labkit.serve import Alone, Load, Repeated, Server, measure_alone, put_load, serve
from labkit.store import Context
from tests.conftest import clean_environment
from tests.models import make_context, make_model
from tests.processes_left import MARKER, marked, wait_until


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """Eager: a compiler would take a minute."""
    return make_context(tmp_path_factory.mktemp("serve"), max_model_len=512)


@pytest.fixture(scope="module")
def served(context: Context) -> Path:
    """A checkpoint with random weights: what these tests ask does not depend on the answers."""
    return make_model(context.workspace.checkpoints / "model")


@pytest.fixture(scope="module")
def server(served: Path, context: Context) -> Iterator[Server]:
    with serve(served, context, log=context.log("server"), name="small") as running:
        yield running


@pytest.fixture
def marker(monkeypatch: pytest.MonkeyPatch) -> str:
    """What every process that a test starts carries in its environment."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARKER, value)
    return value


def tree(server: Server) -> list[psutil.Process]:
    """The server's processes: API server first, then its engine core and helpers."""
    return psutil.Process(server.pid).children(recursive=True)


def engine_core(server: Server) -> psutil.Process:
    """The process that holds the model: the largest below the API server."""
    return max(tree(server)[1:], key=lambda process: process.memory_info().rss)


def test_it_answers_the_openai_client(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url, api_key=server.key)
    asked = [{"role": "user", "content": "How many apples?"}]
    answer = client.chat.completions.create(model="small", messages=asked, max_tokens=5, temperature=0)
    assert answer.usage.completion_tokens == 5


def test_it_refuses_a_request_without_its_key(server: Server) -> None:
    for key, status in ((None, 401), ("wrong", 401), (server.key, 200)):
        header = {"Authorization": f"Bearer {key}"} if key else {}
        assert httpx.get(f"{server.url}/models", headers=header).status_code == status


def test_it_listens_on_loopback_only(server: Server) -> None:
    listening = [c.laddr for p in tree(server) for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {address.ip for address in listening if address.port == server.port} == {"127.0.0.1"}
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.port), timeout=5)


def test_it_has_what_makes_it_quick_and_its_key_is_on_no_command_line_in_no_log_and_in_no_output(
    server: Server, context: Context
) -> None:
    assert engine_env(context).items() <= tree(server)[0].environ().items()
    assert all(server.key not in word for process in tree(server) for word in process.cmdline())
    assert server.key not in server.log.read_text()
    assert server.key not in repr(server) + server.curl() + " ".join(server.command)


def test_no_checkpoint_and_a_port_that_is_none_or_in_use_are_refused_before_anything_starts(
    served: Path, context: Context, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        serve(tmp_path, context, log=log)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for number, told in ((port, f"port {port} is in use"), (80, "port is 80"), (70_000, "port is 70000")):
            with pytest.raises(UsageError, match=told):
                serve(served, context, log=log, port=number)
    assert not log.exists()


def test_a_checkpoint_that_the_engine_refuses_is_an_error_with_its_words_and_nothing_is_left(
    context: Context, tmp_path: Path, marker: str
) -> None:
    broken = make_model(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ProcessFailed, match=r"the server of broken on port \d+ died") as told:
        serve(broken, context, log=tmp_path / "log")
    assert "SafetensorError" in told.value.why
    assert "checkpoint is damaged" in told.value.fix
    assert str(tmp_path / "log") in told.value.fix
    assert marked(marker) == []


@pytest.mark.long
def test_too_little_memory_for_the_cache_is_an_error_that_says_what_to_change(tmp_path: Path, marker: str) -> None:
    """8 kB of cache a token (16 layers, 4 heads of 32, keys and values): 200,000 tokens are more than 1 GiB."""
    long = make_model(tmp_path / "long", layers=16, num_key_value_heads=4, max_position_embeddings=200_000)
    context = make_context(tmp_path, max_model_len=200_000, kv_cache_gib=1)
    with pytest.raises(ProcessFailed, match=r"died[\s\S]*kv_cache_gib"):
        serve(long, context, log=tmp_path / "log")
    assert marked(marker) == []


def test_a_server_that_is_not_ready_in_time_is_stopped(
    served: Path, context: Context, tmp_path: Path, marker: str
) -> None:
    with pytest.raises(ProcessFailed, match="was not ready within 1 s and was stopped"):
        serve(served, context, log=tmp_path / "log", deadline_seconds=1)
    assert marked(marker) == []


@pytest.mark.parametrize("which", [pytest.param("API server", marks=pytest.mark.long), "engine core"])
def test_when_one_of_its_processes_is_killed_all_of_them_go(
    served: Path, context: Context, tmp_path: Path, marker: str, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And their temporary files: vLLM leaves sockets and stores, with which a workshop's machine would fill."""
    with tempfile.TemporaryDirectory(prefix="l", dir="/tmp") as folder:  # short: tmp_path is too long for a socket
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with serve(served, context, log=tmp_path / "log") as server:
            assert len(marked(marker)) >= 3, "guard, API server, engine core"
            (own,) = Path(folder).iterdir()
            assert any(path.is_socket() for path in own.rglob("*")), "without a folder of its own they would stay"
            victim = tree(server)[0] if which == "API server" else engine_core(server)
            victim.kill()
            assert wait_until(lambda: not server.alive)
            assert marked(marker) == []
            with pytest.raises(ProcessFailed, match="the server of model on port"):
                server.require_alive()
        assert list(Path(folder).iterdir()) == []


PARENT = """
import sys, time
from pathlib import Path
from labkit.serve import serve
from tests.models import make_context
server = serve(Path(sys.argv[1]), make_context(Path(sys.argv[2]), max_model_len=512), log=Path(sys.argv[2]) / "log")
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_when_its_parent_dies_nothing_is_left(
    served: Path, tmp_path: Path, marker: str, number: signal.Signals
) -> None:
    with tempfile.TemporaryDirectory(prefix="l", dir="/tmp") as temporary:
        command = [sys.executable, "-c", PARENT, str(served), str(tmp_path)]
        environment = clean_environment(**{MARKER: marker}, TMPDIR=temporary)
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
            try:
                assert parent.stdout.readline() == "ready\n"
                assert len(marked(marker)) >= 4, "parent, guard, API server, engine core"
                parent.send_signal(number)
                parent.wait(60)
            finally:
                parent.kill()
        assert wait_until(lambda: not marked(marker))


# --- speed


def test_each_load_is_measured_and_told(server: Server, served: Path, context: Context, tmp_path: Path) -> None:
    loads = [Load(1, 2, 16, 8), Load(4, 8, 16, 8)]
    ticks: list[int] = []
    first = server.loads
    found = put_load(server, loads, context, tokenizer=served, log=tmp_path / "log", on_tick=ticks.append)
    assert [(one.load, one.seed) for one in found] == [(loads[0], first), (loads[1], first + 1)]
    for one in found:
        assert one.output_tok_per_s == pytest.approx(one.load.requests * 8 / one.wall_seconds, rel=1e-3)
        assert one.request_per_s == pytest.approx(one.load.requests / one.wall_seconds, rel=1e-3)
        assert not one.compiled
        assert 0 < one.ttft_ms <= one.ttft_p99_ms
        assert 0 < one.itl_ms <= one.itl_p99_ms
    assert ticks == [1, 2]
    assert server.key not in (tmp_path / "log").read_text()
    (later,) = put_load(server, loads[:1], context, tokenizer=served, log=tmp_path / "log")
    assert later.seed == first + 2, "a later call would send the prompts of an earlier one, which the server has cached"


def test_what_is_beyond_the_context_or_nothing_is_refused_before_anything_starts(
    server: Server, served: Path, context: Context, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with pytest.raises(UsageError, match="500 tokens in and 64 out are more than the engine's context of 512"):
        put_load(server, [Load(1, 1, 500, 64)], context, tokenizer=served, log=log)
    with pytest.raises(UsageError, match="512 tokens in and 1 out are more than the engine's context of 512"):
        measure_alone(served, [1], 512, context, seconds=1, repeats=1, log=log)
    assert not log.exists()
    with pytest.raises(UsageError, match="requests is 0"):
        Load(1, 0, 1, 1)


@pytest.mark.long
def test_a_server_that_dies_under_the_load_is_the_error_and_no_result_comes(
    served: Path, context: Context, tmp_path: Path, marker: str
) -> None:
    with serve(served, context, log=tmp_path / "server.log", name="mortal") as server:
        core = engine_core(server)

        def kill(_: int) -> None:
            if core.is_running():
                core.kill()

        loads = [Load(1, 1, 16, 8), Load(2, 2000, 16, 64)]
        with pytest.raises(ProcessFailed, match=r"the server of mortal on port \d+ died") as told:
            put_load(server, loads, context, tokenizer=served, log=tmp_path / "log", on_tick=kill)
        assert str(tmp_path / "server.log") in told.value.fix
    assert marked(marker) == []


def test_every_number_of_requests_and_prefill_are_measured_in_a_real_engine(
    served: Path, context: Context, tmp_path: Path
) -> None:
    found = measure_alone(served, [4, 1], 64, context, seconds=6, repeats=2, log=tmp_path / "log")
    assert list(found.step_ms) == [4, 1]
    assert found.prefill_tok_per_s is not None
    for one in (*found.step_ms.values(), found.prefill_tok_per_s):
        assert (one.repeats, one.compiled) == (2, False)
        assert 0 < one.low <= one.median <= one.high
    assert found.decode_tok_per_s(4).median == pytest.approx(4000 / found.step_ms[4].median)
    assert found.decode_tok_per_s(4).high == pytest.approx(4000 / found.step_ms[4].low)


def test_a_slow_engine_takes_one_step_and_leaves_out_what_does_not_fit(
    served: Path, context: Context, tmp_path: Path
) -> None:
    found = measure_alone(served, [4, 1], 64, context, seconds=1e-6, repeats=3, log=tmp_path / "log")
    assert {count: step.repeats for count, step in found.step_ms.items()} == {4: 1}, "the first in any case"
    assert found.prefill_tok_per_s is None


def test_no_more_steps_are_taken_than_the_context_has_tokens_for(served: Path, tmp_path: Path) -> None:
    """The engine fails when its requests end before it has measured."""
    short = make_context(tmp_path, max_model_len=41)
    found = measure_alone(served, [2], 16, short, seconds=60, repeats=3, log=tmp_path / "log")
    assert found.step_ms[2].repeats == 3


def test_loading_takes_the_bytes_of_the_weights_more(tmp_path: Path) -> None:
    """In BF16, on any CPU: in float32 it is twice that."""
    small = make_model(tmp_path / "small", hidden=128)
    large = make_model(tmp_path / "large", hidden=1024, layers=8)
    weights = (large / "model.safetensors").stat().st_size - (small / "model.safetensors").stat().st_size
    assert weights > 100e6
    context, log = make_context(tmp_path, max_model_len=512, dtype="bfloat16"), tmp_path / "log"
    few, many = (measure_alone(f, [1], 8, context, seconds=0.1, repeats=1, log=log) for f in (small, large))
    assert many.loaded_bytes - few.loaded_bytes == pytest.approx(weights, rel=0.25)


def test_a_load_takes_its_prompts_and_its_steps() -> None:
    alone = Alone(0, "bfloat16", {4: Repeated.of([100.0], False)}, Repeated.of([50.0], False))
    load = Load(concurrency=4, requests=8, input_tokens=10, output_tokens=20)
    assert alone.seconds_of(load) == pytest.approx(8 * 10 / 50 + 2 * 20 * 0.1)
    assert load.shortened(0.5) == Load(4, 8, 8, 10)
    assert load.shortened(3.0) == load


def test_a_figure_is_the_median_with_its_extremes_and_a_ratio_says_whether_they_tell_two_apart() -> None:
    slow, fast, wide = (Repeated.of(values, False) for values in ([1.0, 1.1], [2.0, 2.2], [0.5, 3.0]))
    gain = Repeated.of([3.0, 1.0, 2.0], True)
    assert (gain.median, gain.low, gain.high, gain.repeats, str(gain)) == (2.0, 1.0, 3.0, 3, "2 (1 to 3)")
    ratio = fast.over(slow)
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((2.0, 2.0 / 1.1, 2.2))
    assert ratio.verdict == "Its slowest repeat is above the baseline's fastest"
    assert slow.over(fast).verdict == "Its fastest repeat is below the baseline's slowest"
    assert wide.over(slow).verdict == "The repeats do not tell the two apart"
    assert Repeated.of([2.0], False).over(slow).verdict == "Measured once, so without a spread"
