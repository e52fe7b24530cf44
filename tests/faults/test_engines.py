"""Engines and servers under faults: full service or a clear error, nothing left, and the memory comes back.

What kills a server's processes, its engine core or its parent stands in `tests/test_serve.py`, and what kills
an engine or what it was forked from in `tests/test_engine.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from labkit.engine import run, run_source
from labkit.errors import ProcessFailed
from labkit.serve import Server, serve
from labkit.store import Context
from tests.faults.count import Fault
from tests.models import make_context, make_model
from tests.processes_left import MARKER, wait_until

REQUESTS, CLIENTS, TOKENS = 500, 64, 8


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return make_context(tmp_path_factory.mktemp("engines"), max_model_len=512)


@pytest.fixture(scope="module")
def model(context: Context) -> Path:
    return make_model(context.workspace.checkpoints / "model")


@pytest.fixture(scope="module")
def server(model: Path, context: Context) -> Iterator[Server]:
    with serve(model, context, log=context.log("server")) as running:
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
    return sum(float(count) for count in re.findall(r"^vllm:num_requests_(?:running|waiting)\{.* (\S+)$", text, re.M))


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
    model: Path, context: Context, tmp_path: Path, known: Fault
) -> None:
    with socket.socket() as taker:
        taker.bind(("127.0.0.1", 0))
        port = taker.getsockname()[1]
    log = tmp_path / "log"
    with socket.socket() as taker:

        def take() -> None:
            assert wait_until(log.exists)  # it has started, and vLLM imports itself for seconds before it binds
            taker.bind(("127.0.0.1", port))
            taker.listen()

        taking = threading.Thread(target=take)
        taking.start()
        known.injected()
        with pytest.raises(ProcessFailed, match=f"on port {port} died") as told:
            serve(model, context, log=log, port=port)
        taking.join()
    assert "in use" in told.value.why
    assert f"another program took port {port}" in told.value.fix
    known.nothing_left()


OUT_OF_MEMORY = """
import resource
from vllm import LLM
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + job["room"], held + job["room"]))
answer = str(LLM(model=job["model"], max_model_len=512, enforce_eager=True).generate("a"))
"""


def test_an_engine_that_finds_no_memory_is_an_error_with_its_own_words(
    model: Path, context: Context, tmp_path: Path, known: Fault
) -> None:
    known.injected()
    room = int(context.engine.kv_cache_gib * 2**30) - 200_000_000
    job = {"source": OUT_OF_MEMORY, "model": str(model), "room": room}
    with pytest.raises(ProcessFailed) as told:
        run(run_source, job, context, log=tmp_path / "log", deadline_seconds=240)
    assert "memory" in str(told.value).lower()
    assert str(tmp_path / "log") in str(told.value)
    known.nothing_left()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_ten_starts_and_stops_give_the_memory_back(model: Path, context: Context, tmp_path: Path, known: Fault) -> None:
    """Two at a time, which is no easier to hold and quicker."""
    this, held, free = psutil.Process(os.getpid()), [], []

    def started_and_stopped(name: str) -> int:
        with serve(model, context, log=tmp_path / name, name=name) as server:
            return httpx.post(**request(server), timeout=60, trust_env=False).status_code

    for pair in range(5):  # the first two import what serving needs
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(started_and_stopped, [f"{pair}-{number}" for number in range(2)])) == [200, 200]
        known.injected(2)
        known.nothing_left()
        time.sleep(1)
        held.append(this.memory_info().rss)
        free.append(psutil.virtual_memory().available)
    assert held[-1] < 1.05 * held[0]
    assert free[-1] > 0.95 * free[0]
