"""Engines and servers under faults: full service or a clear error, nothing left, and the memory comes back.

What kills a server's processes, its engine core or its parent stands in `tests/serving/test_server.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from labkit.engine import run_script
from labkit.errors import ProcessFailed
from labkit.profiles import TINY
from labkit.serving import Server, serve
from tests.faults.count import Fault
from tests.models import make_model
from tests.processes_left import MARKER, wait_until

ENGINE = replace(TINY.engine, max_model_len=512)
REQUESTS, CLIENTS, TOKENS = 500, 64, 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(model, engine=ENGINE, log=tmp_path_factory.mktemp("server") / "log", name="small") as running:
        yield running


@pytest.fixture
def known(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> Fault:
    """What this test starts is known by its environment."""
    monkeypatch.setenv(MARKER, fault.marker)
    return fault


def request(server: Server, **more: Any) -> dict[str, Any]:
    body = {"model": server.model, "prompt": "How many apples", "max_tokens": TOKENS, "temperature": 0}
    return {
        "url": f"{server.url}/completions",
        "headers": {"Authorization": f"Bearer {server.key}"},
        "json": {**body, "ignore_eos": True, **more},
    }


def running(server: Server) -> float:
    """Requests that the engine works on or queues, as it says itself."""
    text = httpx.get(f"{server.url.removesuffix('/v1')}/metrics", trust_env=False).text
    lines = [
        line for line in text.splitlines() if line.startswith(("vllm:num_requests_running{", "vllm:num_requests_w"))
    ]
    return sum(float(line.split()[-1]) for line in lines)


def test_a_storm_of_requests_is_answered_whole_while_another_is_cancelled(server: Server, fault: Fault) -> None:
    async def storm() -> list[int]:
        gate = asyncio.Semaphore(CLIENTS)
        limits = httpx.Limits(max_connections=CLIENTS + 1)
        async with httpx.AsyncClient(timeout=240, trust_env=False, limits=limits) as client:

            async def one() -> int:
                async with gate:
                    answer = await client.post(**request(server))
                    return int(answer.json()["usage"]["completion_tokens"])

            cancelled = asyncio.create_task(client.post(**request(server, max_tokens=400)))
            asked = [asyncio.create_task(one()) for _ in range(REQUESTS)]
            await asyncio.sleep(0.5)
            cancelled.cancel()
            return await asyncio.gather(*asked)

    fault.injected(REQUESTS + 1)
    assert asyncio.run(storm()) == [TOKENS] * REQUESTS
    assert wait_until(lambda: running(server) == 0, seconds=30), "the cancelled request went on"
    assert server.alive


def test_a_client_that_reads_nothing_keeps_nobody_waiting(server: Server, fault: Fault) -> None:
    sent = request(server, stream=True, max_tokens=400)
    body = json.dumps(sent["json"]).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {server.key}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    deaf = []
    for _ in range(8):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        client.connect(("127.0.0.1", server.port))
        client.sendall(head.encode() + body)
        deaf.append(client)
    fault.injected(len(deaf))
    for _ in range(10):
        answer = httpx.post(**request(server), timeout=60, trust_env=False)
        assert answer.json()["usage"]["completion_tokens"] == TOKENS
    for client in deaf:
        client.close()
    assert wait_until(lambda: running(server) == 0, seconds=60)
    assert server.alive


@pytest.mark.long
def test_a_port_that_is_taken_between_choosing_and_binding_is_an_error_that_says_so(
    model: Path, tmp_path: Path, known: Fault
) -> None:
    server = serve(model, engine=ENGINE, log=tmp_path / "log", wait=False)
    with server, socket.socket() as taker:  # vLLM imports itself for seconds before it binds
        taker.bind(("127.0.0.1", server.port))
        taker.listen()
        known.injected()
        with pytest.raises(ProcessFailed, match=f"on port {server.port} died") as told:
            server.wait()
    assert "in use" in str(told.value)
    known.nothing_left()


OUT_OF_MEMORY = """
import resource
from vllm import LLM
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + job["room"], held + job["room"]))
answer = str(LLM(model=job["model"], max_model_len=512, enforce_eager=True).generate("a"))
"""


def test_an_engine_that_finds_no_memory_is_an_error_with_its_own_words(
    model: Path, tmp_path: Path, known: Fault
) -> None:
    known.injected()
    with pytest.raises(ProcessFailed) as told:
        run_script(
            OUT_OF_MEMORY,
            {"model": str(model), "room": int(ENGINE.kv_cache_gib * 2**30) - 200_000_000},
            log=tmp_path / "log",
            engine=ENGINE,
            offline=True,
            deadline_seconds=240,
        )
    assert "memory" in str(told.value).lower()
    assert str(tmp_path / "log") in str(told.value)
    known.nothing_left()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_ten_starts_and_stops_give_the_memory_back(model: Path, tmp_path: Path, known: Fault) -> None:
    """Two at a time, which is no easier to hold and quicker."""
    this, held, free = psutil.Process(os.getpid()), [], []
    for pair in range(5):  # the first two import what serving needs
        with ExitStack() as stack:
            names = [f"{pair}-{number}" for number in range(2)]
            starting = (serve(model, engine=ENGINE, log=tmp_path / name, name=name, wait=False) for name in names)
            servers = [stack.enter_context(server) for server in starting]
            for server in servers:
                server.wait()
                assert httpx.post(**request(server), timeout=60, trust_env=False).status_code == 200
        known.injected(len(servers))
        known.nothing_left()
        time.sleep(1)
        held.append(this.memory_info().rss)
        free.append(psutil.virtual_memory().available)
    assert held[-1] < 1.05 * held[0]
    assert free[-1] > 0.95 * free[0]
