"""A real server: who may ask it, where it listens, what it keeps to itself, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from labkit import hardware
from labkit.engine import end_fork_servers, forked
from labkit.errors import ProcessFailed, UsageError
from labkit.serving import Server, serve
from labkit.serving.server import KEY_VARIABLE
from labkit.serving.settings import NO_AOT, SPIN_BRIEFLY
from tests.conftest import clean_environment
from tests.models import make_model
from tests.processes_left import MARKER, marked, wait_until
from tests.serving.conftest import ENGINE


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
    pieces = client.chat.completions.create(model="small", messages=asked, max_tokens=5, temperature=0, stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in pieces) == answer.choices[0].message.content


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}], ids=["no key", "another key"])
def test_it_refuses_a_request_without_its_key(server: Server, header: dict[str, str]) -> None:
    assert httpx.get(f"{server.url}/models", headers=header).status_code == 401
    assert httpx.get(f"{server.url}/models", headers={"Authorization": f"Bearer {server.key}"}).status_code == 200


def test_it_listens_on_loopback_and_nowhere_else(server: Server) -> None:
    listening = [c.laddr for p in tree(server) for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert server.port in [address.port for address in listening]
    for address in [a for a in listening if a.port == server.port]:
        assert address.ip == "127.0.0.1"


def test_another_address_of_this_machine_does_not_reach_it(server: Server) -> None:
    addresses = {a.address for found in psutil.net_if_addrs().values() for a in found if a.family == socket.AF_INET}
    others = sorted(address for address in addresses if not address.startswith("127."))
    for address in [*others, "127.0.0.2"]:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((address, server.port), timeout=5)


@pytest.mark.skipif(hardware.engine_build() != "cpu", reason="these settings are for vLLM's CPU build")
def test_its_processes_have_the_settings_that_make_them_quick_on_a_cpu(server: Server) -> None:
    wanted = {**SPIN_BRIEFLY, **NO_AOT}
    assert wanted.items() <= tree(server)[0].environ().items()
    large = [process for process in tree(server) if process.memory_info().rss > 2**28]
    assert len(large) == 2, "the API server and the engine core, which needs no worker beside it"
    assert all(str(forked.SERVER) in process.cmdline() for process in large), (
        "both are forks: a new one imports all again"
    )


def test_the_key_is_on_no_command_line_in_no_log_and_in_no_output(server: Server) -> None:
    assert all(server.key not in word for process in tree(server) for word in process.cmdline())
    assert server.key not in server.log.read_text()
    assert server.key not in repr(server) + server.curl() + " ".join(server.command)


def test_the_printed_curl_line_works(server: Server) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{server.curl()} --silent --show-error --fail"],
        env={**os.environ, KEY_VARIABLE: server.key},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert '"completion_tokens"' in done.stdout


def test_a_request_beyond_the_context_is_refused_with_both_numbers_and_the_server_goes_on(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url, api_key=server.key, max_retries=0)
    with pytest.raises(openai.BadRequestError, match=r"512[\s\S]*(token|context)"):
        client.completions.create(model="small", prompt="apples " * 2000, max_tokens=5)
    assert server.alive


def test_a_port_in_use_is_refused_before_anything_starts(served: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match=r"port \d+ is in use"):
            serve(served, engine=ENGINE, log=tmp_path / "log", port=taken.getsockname()[1])
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("port", [80, -1, 70_000])
def test_a_port_that_is_none_is_refused(served: Path, tmp_path: Path, port: int) -> None:
    with pytest.raises(UsageError, match=f"port is {port}"):
        serve(served, engine=ENGINE, log=tmp_path / "log", port=port)


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        serve(tmp_path, engine=ENGINE, log=tmp_path / "log")


@pytest.fixture
def marker(monkeypatch: pytest.MonkeyPatch) -> str:
    """What every process that a test starts carries in its environment."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARKER, value)
    return value


def test_a_checkpoint_that_the_engine_refuses_is_an_error_with_its_words_and_nothing_is_left(
    tmp_path: Path, marker: str
) -> None:
    broken = make_model(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ProcessFailed, match=r"the server of broken on port \d+ died") as told:
        serve(broken, engine=ENGINE, log=tmp_path / "log")
    assert "SafetensorError" in told.value.why
    assert "checkpoint is damaged" in told.value.fix
    assert str(tmp_path / "log") in told.value.fix
    assert marked(marker) == []


@pytest.mark.long
def test_too_little_memory_for_the_cache_is_an_error_that_says_what_to_change(tmp_path: Path, marker: str) -> None:
    """8 kB of cache a token (16 layers, 4 heads of 32, keys and values): 200,000 tokens are more than 1 GiB."""
    shape = {"layers": 16, "num_key_value_heads": 4, "max_position_embeddings": 200_000}
    long = make_model(tmp_path / "long", **shape)
    engine = replace(ENGINE, max_model_len=200_000, kv_cache_gib=1)
    with pytest.raises(ProcessFailed, match="died") as told:
        serve(long, engine=engine, log=tmp_path / "log")
    assert "kv_cache_gib" in told.value.fix
    assert marked(marker) == []


def test_a_server_that_is_not_ready_in_time_is_stopped(served: Path, tmp_path: Path, marker: str) -> None:
    with pytest.raises(ProcessFailed, match="was not ready within 1 s and was stopped"):
        serve(served, engine=ENGINE, log=tmp_path / "log", deadline_seconds=1)
    assert marked(marker) == []


@pytest.mark.parametrize("which", [pytest.param("API server", marks=pytest.mark.long), "engine core"])
def test_when_one_of_its_processes_is_killed_all_of_them_go(
    served: Path, tmp_path: Path, marker: str, which: str
) -> None:
    with serve(served, engine=ENGINE, log=tmp_path / "log") as server:
        assert len(marked(marker)) >= 3, "guard, API server, engine core"
        victim = tree(server)[0] if which == "API server" else engine_core(server)
        victim.kill()
        assert wait_until(lambda: not server.alive)
        assert marked(marker) == []
        with pytest.raises(ProcessFailed, match="the server of model on port"):
            server.require_alive()


@pytest.mark.long
def test_it_leaves_nothing_in_the_temporary_folder(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM leaves sockets and stores there; a workshop's machine would fill with them."""
    with tempfile.TemporaryDirectory(prefix="l") as folder:  # short: tmp_path is too long for a socket
        monkeypatch.setattr(tempfile, "tempdir", folder)
        end_fork_servers()
        with serve(served, engine=ENGINE, log=tmp_path / "log"):
            (own,) = Path(folder).glob("labkit-server-*")
            assert any(path.is_socket() for path in own.rglob("*")), "without a folder of its own they would stay"
        end_fork_servers()
        assert list(Path(folder).iterdir()) == []


PARENT = """
import sys, time
from dataclasses import replace
from pathlib import Path
from labkit.profiles import TINY
from labkit.serving import serve
server = serve(Path(sys.argv[1]), engine=replace(TINY.engine, max_model_len=512), log=Path(sys.argv[2]))
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_when_its_parent_dies_nothing_is_left(
    served: Path, tmp_path: Path, marker: str, number: signal.Signals
) -> None:
    command = [sys.executable, "-c", PARENT, str(served), str(tmp_path / "log")]
    environment = clean_environment(**{MARKER: marker})
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout.readline() == "ready\n"
            assert len(marked(marker)) >= 4, "parent, guard, API server, engine core"
            parent.send_signal(number)
            parent.wait(60)
        finally:
            parent.kill()
    assert wait_until(lambda: not marked(marker))
