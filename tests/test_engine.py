"""Engines in processes of their own: what goes in and out, what is said when one fails, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from labkit import engine, hardware
from labkit.engine import end_fork_server, engine_env, error_lines, number_type, run, run_source
from labkit.errors import ProcessFailed
from labkit.hardware import Gpu, Machine, this_machine
from labkit.profiles import TINY
from tests.conftest import ROOT, clean_environment
from tests.models import make_context, make_model
from tests.processes_left import MARKER, engines, marked, wait_until

forked = pytest.mark.skipif(hardware.engine_build() != "cpu", reason="engines are forked on a CPU only")


def ask(source: str, tmp_path: Path, deadline_seconds: float = 120.0, env: dict[str, str] | None = None, **job: Any):
    """What a script in an engine's process leaves in `answer`."""
    context, log = make_context(tmp_path), tmp_path / "logs" / "engine.log"
    job["source"] = source
    return run(run_source, job, context, log=log, deadline_seconds=deadline_seconds, env=env)


@pytest.fixture(autouse=True)
def no_engine_is_left() -> Iterator[None]:
    yield
    assert engines() == []


# --- in and out


def test_a_script_gets_its_job_leaves_an_answer_and_prints_into_the_log(tmp_path, capfd):
    assert ask("print('said'); answer = {'sum': sum(job['numbers'])}", tmp_path, numbers=[1, 2, 3]) == {"sum": 6}
    assert "said\n" in (tmp_path / "logs" / "engine.log").read_text()
    assert capfd.readouterr() == ("", "")


def counting(most: int, tell: Any) -> str:
    for number in range(most):
        tell(number)
    return "counted"


def test_a_function_of_a_module_tells_how_far_it_is(tmp_path):
    told: list[int] = []
    assert run(counting, 3, make_context(tmp_path), log=tmp_path / "log", on_progress=told.append) == "counted"
    assert told == [0, 1, 2]


def test_an_engine_has_its_own_environment_key_and_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SET_AFTER_THE_FORK_SERVER", "1")
    names = ["HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE", "VLLM_ENABLE_V1_MULTIPROCESSING", "SET_AFTER_THE_FORK_SERVER"]
    source = (
        "import os, tempfile, huggingface_hub.constants as hub\n"
        "answer = [os.environ.get(name) for name in job['names']], tempfile.mkdtemp(), hub.HF_HUB_OFFLINE"
    )
    found = [ask(source, tmp_path, env={"KEY": key}, names=[*names, "KEY"]) for key in "ab"]
    assert [values for values, *_ in found] == [["1", "1", "0", "1", key] for key in "ab"]
    folders = [Path(folder) for _, folder, _ in found]
    assert folders[0].parent != folders[1].parent
    assert not any(folder.exists() for folder in folders), "it goes with the engine"
    assert all(offline for *_, offline in found), "also where that is read on import"
    assert "HF_HUB_OFFLINE" not in engine_env(replace(make_context(tmp_path), offline=False))


def test_a_temporary_folder_with_too_long_a_name_for_sockets_does_no_harm(tmp_path, monkeypatch):
    folder = tmp_path / ("long" * 20)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with engine.scratch("engine-") as own:
        assert own == {}
    assert ask("answer = 'here'", tmp_path) == "here"
    assert list(folder.iterdir()) == []


GENERATE = """
import importlib.metadata
from vllm import LLM, SamplingParams

model = LLM(job["model"], max_model_len=256, enforce_eager=True, dtype="bfloat16")
found = model.generate(job["prompts"], SamplingParams(temperature=0, max_tokens=8))
answer = [len(row.outputs[0].token_ids) for row in found], importlib.metadata.version("vllm")
"""


def test_an_offline_generation_script_runs_and_leaves_nothing_in_the_temporary_folder(tmp_path, monkeypatch):
    model = make_model(tmp_path / "model")
    ask("answer = 1", tmp_path)  # the fork server's socket lies in the folder of its start
    with tempfile.TemporaryDirectory(prefix="l", dir="/tmp") as temporary:
        monkeypatch.setattr(tempfile, "tempdir", temporary)
        tokens, version = ask(GENERATE, tmp_path, 300, model=str(model), prompts=["Question: Tom has 3 books.", "Once"])
        assert list(Path(temporary).iterdir()) == []
    assert len(tokens) == 2
    assert all(1 <= count <= 8 for count in tokens)
    assert version == hardware.stack_versions()["vllm"], "vLLM's CPU build answers for vLLM"
    assert "vllm" not in sys.modules


def test_a_program_that_runs_an_engine_is_not_run_again_by_it(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(OWNER + "print('once')\n")
    command = [sys.executable, str(program), str(tmp_path), "answer = 1"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "once\n"), done.stderr


# --- what is said when one fails


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "def check(limit):\n    raise ValueError(f'limit is {limit}')\n\ncheck(-1)",
            r"ValueError: limit is -1\n[\s\S]*script.py, line 2, in check: raise ValueError[\s\S]*engine.log",
        ),
        ("result = 1", "NameError: the script leaves nothing in `answer`"),
        ("answer = lambda: 1", "failed with (PicklingError|AttributeError).*pickle"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os; os._exit(3)", "ended with exit code 3 and no answer"),
        ("import os, time; os.fork() or time.sleep(60); os.kill(os.getpid(), 9)", r"was killed \(signal 9\)"),
    ],
    ids=["an exception", "no answer", "no data", "an exit", "a hard exit", "killed, and a fork of it lives on"],
)
def test_whatever_ends_an_engine_without_an_answer_is_told(tmp_path, source, told):
    with pytest.raises(ProcessFailed, match=told):
        ask(source, tmp_path)


def test_the_error_lines_of_a_log_are_its_causes_or_its_last_lines(tmp_path):
    log, earlier = tmp_path / "log", "ValueError: of an earlier run\n"
    log.write_text(
        f"{earlier}"
        "(EngineCore pid=7) ERROR 11-21 08:00:00 [core.py:12] Traceback (most recent call last):\n"
        "(EngineCore pid=7) ERROR 11-21 08:00:00 [core.py:12]   File x, line 3, in y\n"
        "(EngineCore pid=7) ERROR 11-21 08:00:00 [core.py:12] torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\n"
        "INFO 11-21 08:00:01 [util.py:1] shutting down\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n" + "teardown noise\n" * 40
    )
    assert error_lines(log, len(earlier)) == ["torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"]
    assert error_lines(tmp_path / "no such log") == []
    log.write_text("".join(f"line {i}\n\n" for i in range(30)))
    assert error_lines(log) == [f"line {i}" for i in range(24, 30)]


# --- nothing is left

STARTS_ANOTHER = """
import pathlib, subprocess, time
child = subprocess.Popen(['sleep', '300'])
pathlib.Path(job['pid']).write_text(str(child.pid))
time.sleep(300)
"""


def test_an_engine_that_outlasts_its_deadline_is_stopped_with_all_that_it_started(tmp_path):
    ask("answer = 1", tmp_path)  # what it takes to import everything counts, too
    with pytest.raises(ProcessFailed, match="did not end within 8 s"):
        ask(STARTS_ANOTHER, tmp_path, deadline_seconds=8, pid=str(tmp_path / "pid"))
    assert wait_until(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())))


OWNER = """
import sys
from pathlib import Path
from labkit.engine import run, run_source
from tests.models import make_context
folder = Path(sys.argv[1])
job = {"source": sys.argv[2], "pid": str(folder / "pid")}
run(run_source, job, make_context(folder), log=folder / "log")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_when_the_owner_dies_neither_fork_server_nor_engine_is_left(tmp_path, number):
    marker = uuid.uuid4().hex
    command = [sys.executable, "-c", OWNER, str(tmp_path), STARTS_ANOTHER]
    with tempfile.TemporaryDirectory(prefix="l", dir="/tmp") as temporary:
        environment = clean_environment(**{MARKER: marker}, TMPDIR=temporary)
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as owner:
            assert wait_until((tmp_path / "pid").exists, seconds=120)
            assert len(marked(marker)) >= 4, "owner, fork server, engine, what that started"
            owner.send_signal(number)
        assert wait_until(lambda: marked(marker) == [])
        if number == signal.SIGINT:
            assert list(Path(temporary).iterdir()) == []


def fork_servers() -> list[psutil.Process]:
    """That of this process, if there is one."""
    return [p for p in psutil.Process().children() if "multiprocessing.forkserver" in " ".join(p.cmdline())]


@forked
def test_a_fork_server_that_is_killed_is_told_takes_its_engines_along_and_the_next_engine_has_another(tmp_path):
    parent = "import os; answer = os.getppid()"
    first = ask(parent, tmp_path)
    assert [first] == [server.pid for server in fork_servers()]
    with pytest.raises(ProcessFailed, match="the process that engines are forked from has ended"):
        ask(f"import os, time; os.kill({first}, 9); time.sleep(600)", tmp_path)
    assert ask(parent, tmp_path) != first


@forked
def test_a_fork_server_has_no_key_ends_on_demand_and_is_told_of_if_it_ends_while_it_imports(tmp_path):
    ask("answer = 1", tmp_path, env={"VLLM_API_KEY": "secret"})
    (server,) = fork_servers()
    assert "VLLM_API_KEY" not in server.environ()
    for _ in range(2):
        end_fork_server()
        assert not server.is_running()
        assert all(engine.is_helper(child.pid) for child in psutil.Process().children())
    killer = threading.Thread(target=lambda: wait_until(lambda: fork_servers() != []) and fork_servers()[0].kill())
    killer.start()
    with pytest.raises(ProcessFailed, match="the process that engines are forked from has ended"):
        ask("answer = 1", tmp_path)
    killer.join()
    assert ask("answer = 1", tmp_path) == 1


# --- forks that differ


@forked
def test_one_fork_server_has_forks_that_compile_and_forks_that_compile_nothing_and_they_draw_apart(tmp_path):
    """Not even what was decorated when the server imported it: compiling that takes 20 s."""
    nothing = """
import os, torch, torch._dynamo.utils
from vllm.v1.sample.ops.logprobs import batched_count_greater_than
batched_count_greater_than(torch.rand(2, 3), torch.rand(2, 1))
answer = [os.getppid(), sum(torch._dynamo.utils.counters["frames"].values())]
"""
    server, frames = ask(nothing, tmp_path, env={"TORCHDYNAMO_DISABLE": "1"})
    assert frames == 0
    compiles = "import os, torch._dynamo; answer = [os.getppid(), torch._dynamo.config.disable]"
    assert ask(compiles, tmp_path, env={"TORCHDYNAMO_DISABLE": ""}) == [server, False]
    draws = "from datasets import fingerprint; answer = fingerprint.generate_random_fingerprint()"
    assert ask(draws, tmp_path) != ask(draws, tmp_path), "they would read each other's cached rows"


# --- what an engine is started with


def test_on_blackwell_vllm_is_kept_from_the_int8_kernel_that_refuses_it(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "engine_build", lambda: "cuda")
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", "SomeKernel")
    for capability, expected in (((9, 0), None), ((10, 3), f"SomeKernel,{engine.NO_INT8_ON_BLACKWELL}")):
        machine = Machine("a CPU", 8, 2**35, gpus=(Gpu("a GPU", 2**35, "nvidia", capability),))
        monkeypatch.setattr(hardware, "this_machine", lambda machine=machine: machine)
        assert engine_env(make_context(tmp_path)).get("VLLM_DISABLED_KERNELS") == expected


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"avx2"}, "float32"),
        ({"avx2", "avx512f", "avx512_vnni"}, "float32"),
        ({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}, "bfloat16"),
    ],
)
def test_the_number_type_is_float32_where_the_cpu_has_no_units_for_bf16(features, expected, monkeypatch, tmp_path):
    machine = replace(this_machine(), features=frozenset(features), gpus=())
    monkeypatch.setattr(hardware, "capability", partial(hardware.capability, machine=machine, build="cpu"))
    assert number_type(TINY.engine) == expected
    assert number_type(replace(TINY.engine, dtype="float16")) == "float16"
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"format": engine.PACKED}}))
    assert number_type(TINY.engine, tmp_path) == "bfloat16", "vLLM's kernel for W4A16 on CPUs has no float32"
    (tmp_path / "config.json").write_text("{}")
    assert number_type(TINY.engine, tmp_path) == expected


# --- mends

FLAGS = Path("/proc/cpuinfo").read_text()
PRODUCT = """
import ctypes, torch
mask = ctypes.c_ulong()
ctypes.CDLL(None).syscall(158, 0x1022, ctypes.byref(mask))
x, w = (torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)).to(torch.float8_e4m3fn) for seed in (1, 2))
one = torch.ones(1)
found = torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.float32)
answer = [bool(torch.equal(found, x.float() @ w.float().t())), bool(mask.value >> 18 & 1)]
"""


@pytest.mark.skipif(
    "amx_int8" not in FLAGS or "amx_fp16" in FLAGS,
    reason="only a CPU with AMX, but none for FP16, is handed FP8 products that oneDNN has no kernel for",
)
def test_onednn_is_given_no_fp8_product_that_it_has_no_kernel_for_and_the_tiles_of_amx_may_be_used(tmp_path):
    assert ask(PRODUCT, tmp_path, env={"ONEDNN_VERBOSE": "1"}) == [True, True]
    assert "f8_e4m3" not in (tmp_path / "logs" / "engine.log").read_text()
