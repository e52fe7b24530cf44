"""Forked engines: what a fork has of its server and what it has not, and that none outlives anybody it belongs to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from labkit import hardware, processes
from labkit.engine import CHILD, end_fork_servers, engine_env, forked, forks, launch, run_script
from labkit.errors import ProcessFailed
from labkit.profiles import TINY
from tests.conftest import clean_environment
from tests.processes_left import MARKER, engines, fork_servers, marked, wait_until

pytestmark = pytest.mark.skipif(hardware.engine_build() != "cpu", reason="engines are forked on a CPU only")

# Who forked this process: the parent of its guard.
SERVER_OF = "import os; answer = int(open(f'/proc/{os.getppid()}/stat').read().rsplit(')', 1)[1].split()[1])"


def run(source: str, tmp_path: Path, env: dict[str, str] | None = None, **job: object) -> Any:
    log = tmp_path / "log"
    return run_script(source, job, log=log, engine=TINY.engine, offline=True, deadline_seconds=120, env=env)


@contextmanager
def engine(folder: Path, source: str = "import time; time.sleep(600)") -> Iterator[processes.Child]:
    """A started engine that runs a script, for the length of a `with` block."""
    (folder / "script.py").write_text(source)
    (folder / "job.json").write_text("{}")
    command = [processes.engine_python(), str(CHILD), str(folder)]
    with processes.start(command, folder / "log", engine_env(TINY.engine, offline=True), launch=launch) as child:
        yield child


@pytest.fixture(scope="module", autouse=True)
def no_server_is_left() -> Iterator[None]:
    """The tests share a server: one takes ten seconds to import everything."""
    end_fork_servers()
    yield
    end_fork_servers()
    assert fork_servers() == set()


@pytest.fixture(autouse=True)
def no_engine_is_left() -> Iterator[None]:
    yield
    assert engines() == []


def newest_server() -> int:
    """The fork server that was started last: the child of its guard."""
    guards = [child for child in psutil.Process().children() if child.pid in fork_servers()]
    (server,) = max(guards, key=lambda guard: guard.create_time()).children()
    return server.pid


def test_engines_are_forks_of_one_server_that_has_imported_vllm(tmp_path: Path) -> None:
    asked = SERVER_OF + "\nimport sys; answer = [answer, 'vllm' in sys.modules, 'lm_eval' in sys.modules]"
    first, second = run(asked, tmp_path), run(asked, tmp_path)
    assert first == second == [newest_server(), True, True]


def test_what_one_fork_changes_the_next_one_does_not_see(tmp_path: Path) -> None:
    run("import os, sys; os.environ['CHANGED'] = '1'; sys.changed = True; answer = 1", tmp_path)
    assert run("import os, sys; answer = [os.environ.get('CHANGED'), hasattr(sys, 'changed')]", tmp_path) == [
        None,
        False,
    ]


def test_a_fork_has_its_own_key_and_folders_and_its_server_has_no_key(tmp_path: Path) -> None:
    asked = "import os, tempfile; answer = [os.environ['VLLM_API_KEY'], tempfile.gettempdir(), os.getcwd()]"
    found = [run(asked, tmp_path, {"VLLM_API_KEY": key}) for key in ("key-1", "key-2")]
    assert [key for key, _, _ in found] == ["key-1", "key-2"]
    assert found[0][1] != found[1][1], "a temporary folder each"
    assert found[0][2] == str(Path.cwd())
    assert "VLLM_API_KEY" not in psutil.Process(newest_server()).environ()


def test_one_server_has_forks_that_compile_and_forks_that_compile_nothing(tmp_path: Path) -> None:
    """Not even what was decorated when the server imported it: compiling that takes 20 s."""
    nothing = """
import torch, torch._dynamo.utils
from vllm.v1.sample.ops.logprobs import batched_count_greater_than
batched_count_greater_than(torch.rand(2, 3), torch.rand(2, 1))
answer = [answer, sum(torch._dynamo.utils.counters["frames"].values())]
"""
    server, frames = run(SERVER_OF + nothing, tmp_path, {"TORCHDYNAMO_DISABLE": "1"})
    assert frames == 0
    compiles = "\nimport torch._dynamo; answer = [answer, torch._dynamo.config.disable]"
    assert run(SERVER_OF + compiles, tmp_path, {"TORCHDYNAMO_DISABLE": ""}) == [server, False]


def test_an_engine_that_ends_looks_for_garbage_among_its_own_objects_only(tmp_path: Path) -> None:
    """vLLM unfreezes what was frozen, and then looks."""
    asked = "import gc; gc.unfreeze(); answer = [len(gc.get_objects()), gc.get_freeze_count()]"
    own, imported = run(asked, tmp_path)
    assert own < imported / 10


def test_vllm_looks_at_a_models_class_in_the_fork_itself(tmp_path: Path) -> None:
    asked = "import os; from vllm.model_executor.models import registry; "
    assert run(asked + "answer = registry._run_in_subprocess(os.getpid) == os.getpid()", tmp_path)


def test_forks_draw_apart_where_they_have_not_said_from_which_seed(tmp_path: Path) -> None:
    asked = "import numpy, random; from datasets import fingerprint; "
    asked += "answer = [numpy.random.rand(), random.random(), fingerprint.generate_random_fingerprint()]"
    one, other = run(asked, tmp_path), run(asked, tmp_path)
    assert not set(one) & set(other)


@pytest.mark.long
def test_another_environment_has_another_server_and_no_more_stay_than_may(tmp_path: Path) -> None:
    numbers = [run(SERVER_OF, tmp_path, {"OMP_NUM_THREADS": str(threads)}) for threads in (1, 2, 1, 4)]
    assert numbers[0] == numbers[2]
    assert len(set(numbers)) == 3
    assert len(fork_servers()) == 2 * forks.MOST_SERVERS, "each with its guard"
    assert run(SERVER_OF, tmp_path, {"OMP_NUM_THREADS": "1"}) == numbers[0], "the one asked longest ago has gone"


def test_the_switch_starts_every_engine_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(forks.SWITCH, "0")
    assert run("import sys; answer = 'vllm' in sys.modules", tmp_path) is False


def test_a_server_that_ends_while_it_imports_is_done_without(tmp_path: Path) -> None:
    end_fork_servers()
    with engine(tmp_path, "answer = 'here'") as child:
        assert wait_until(lambda: len(fork_servers()) == 2)
        os.kill(newest_server(), signal.SIGKILL)
        assert wait_until(lambda: child.poll() is not None)
        assert child.finished().returncode == 0
    assert (tmp_path / "answer.json").read_text() == '"here"'
    assert run("import sys; answer = 'vllm' in sys.modules", tmp_path) is False, "nor is it started again and again"
    end_fork_servers()


@pytest.mark.long
def test_a_server_that_is_killed_takes_its_engines_along_and_the_next_one_has_another(tmp_path: Path) -> None:
    first = run(SERVER_OF, tmp_path)
    with pytest.raises(ProcessFailed, match="was killed"):
        run(f"import os, time; os.kill({first}, 9); time.sleep(600)", tmp_path)
    assert engines() == []
    assert run(SERVER_OF, tmp_path) != first


def test_whoever_asks_how_an_engine_is_does_not_wait_for_its_server_to_import(tmp_path: Path) -> None:
    end_fork_servers()
    with engine(tmp_path) as child:
        assert child.poll() is None
        assert engines() == [], "no fork yet, and still there was an answer"


HERE = f"""
import importlib.util, os, socket, sys, threading
spec = importlib.util.spec_from_file_location("forkserver", {str(forked.SERVER)!r})
server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(server)
"""
IDLE = f"""
{HERE}
server.IDLE_SECONDS = 0.1
owner, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
print(server.ForkServer("", [control]).serve())
"""


def test_a_server_of_which_nothing_is_asked_ends_by_itself() -> None:
    done = subprocess.run([sys.executable, "-c", IDLE], capture_output=True, text=True, timeout=120)
    assert done.stdout == "None\n", done.stderr


NO_FORK = f"""
{HERE}
from labkit.engine import forked
def too_many():
    raise BlockingIOError("Resource temporarily unavailable")
server.os.fork = too_many
ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
threading.Thread(target=server.ForkServer("", [its]).serve, daemon=True).start()
asked, (owner, _) = forked.ForkServer(ours), os.pipe()
fork = asked.fork([sys.executable, "-c", "print('anew')"], 1, dict(os.environ), None, owner)
print(fork.wait(60), asked.alive, asked.useless)
"""


def test_where_a_server_can_fork_no_more_a_new_process_is_started_and_the_server_stays() -> None:
    done = subprocess.run([sys.executable, "-c", NO_FORK], capture_output=True, text=True, timeout=120)
    assert done.stdout == "anew\n0 True False\n", done.stderr


def test_an_engine_that_is_stopped_before_its_server_is_ready_never_starts(tmp_path: Path) -> None:
    end_fork_servers()
    with engine(tmp_path, f"answer = open({str(tmp_path / 'ran')!r}, 'w').close()"):
        pass
    assert run("answer = 1", tmp_path) == 1, "the server lives, and answers the next one"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_owner_dies_neither_server_nor_engine_is_left(number: int, tmp_path: Path) -> None:
    marker = uuid.uuid4().hex
    owner = f"""
from pathlib import Path
from labkit.engine import run_script
from labkit.profiles import TINY
script = "import pathlib, subprocess, time; subprocess.Popen(['setsid', 'sleep', '600']); "
script += "pathlib.Path({str(tmp_path / "runs")!r}).touch(); time.sleep(600)"
run_script(script, {{}}, log=Path({str(tmp_path / "log")!r}), engine=TINY.engine, offline=True, deadline_seconds=600)
"""
    process = subprocess.Popen([sys.executable, "-c", owner], env=clean_environment(**{MARKER: marker}))
    assert wait_until((tmp_path / "runs").exists, seconds=120)
    assert len(marked(marker)) >= 6, "owner, the server and its guard, the engine and its guard, a daemon"
    process.send_signal(number)
    process.wait()
    assert wait_until(lambda: marked(marker) == [])


def test_a_guard_does_not_end_before_its_engine_however_early_it_is_told_to(tmp_path: Path) -> None:
    """The signal comes as soon as there is a process, which may not be the guard's program yet."""
    run("answer = 1", tmp_path)
    for _ in range(10):
        with engine(tmp_path) as child:
            os.kill(child.pid, signal.SIGTERM)
            assert wait_until(lambda child=child: child.poll() is not None)
        assert engines() == []


def test_only_servers_without_an_engine_are_ended_where_an_engine_that_was_left_is_to_be_told(tmp_path: Path) -> None:
    with engine(tmp_path) as child:
        assert child.pid
        end_fork_servers(idle_only=True)
        assert engines(), "the engine runs on, and its lab's end says so"
    end_fork_servers(idle_only=True)
    assert fork_servers() == set()


def test_a_fork_with_nothing_to_do_costs_no_memory_of_its_own(tmp_path: Path) -> None:
    """What was imported is shared: 0.8 GB are resident, and the fork's own pages are a small part of them."""
    own = (
        "rows = open('/proc/self/smaps_rollup').read().splitlines(); "
        "kib = {row.split(':')[0]: int(row.split()[1]) for row in rows[1:]}; "
        "answer = [kib['Rss'], kib['Private_Dirty'] + kib['Private_Clean']]"
    )
    resident, private = run(own, tmp_path)
    assert private < resident / 4


AMX = pytest.mark.skipif(
    "amx_int8" not in Path("/proc/cpuinfo").read_text() or "amx_fp16" in Path("/proc/cpuinfo").read_text(),
    reason="only a CPU with AMX, but none for FP16, is handed FP8 products that oneDNN has no kernel for",
)
PRODUCT = """
import torch
x, w = (torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)).to(torch.float8_e4m3fn) for seed in (1, 2))
one = torch.ones(1)
found = torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.float32)
answer = bool(torch.equal(found, x.float() @ w.float().t()))
"""


@AMX
@pytest.mark.parametrize("forked", ["0", "1"])
def test_onednn_is_given_no_fp8_product_that_it_has_no_kernel_for(
    forked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(forks.SWITCH, forked)
    assert run(PRODUCT, tmp_path, {"ONEDNN_VERBOSE": "1"})
    assert "f8_e4m3" not in (tmp_path / "log").read_text()


@AMX
def test_a_process_may_use_the_tiles_of_amx(tmp_path: Path) -> None:
    asked = "import ctypes; mask = ctypes.c_ulong(); ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(mask)); "
    assert run(asked + "answer = bool(mask.value >> 18 & 1)", tmp_path)
