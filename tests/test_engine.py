"""The engine child: what goes in, what comes out, and what is told when it fails."""

import json
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from labkit import hardware
from labkit.engine import engine_env, number_type, run_script, scratch_env, telling_lines
from labkit.errors import ProcessFailed, UsageError
from labkit.hardware import Gpu, Machine, this_machine
from labkit.profiles import TINY
from tests.models import make_model


def run(source: str, tmp_path: Path, deadline_seconds: float = 60.0, **argument: object) -> object:
    """A script in the child, offline, with a log in the test's folder."""
    return run_script(
        source,
        argument,
        log=tmp_path / "logs" / "engine.log",
        engine=TINY.engine,
        offline=True,
        deadline_seconds=deadline_seconds,
    )


def test_a_script_gets_its_job_and_leaves_an_answer(tmp_path):
    assert run("answer = {'sum': sum(job['numbers'])}", tmp_path, numbers=[1, 2, 3]) == {"sum": 6}


def test_what_a_script_prints_goes_to_the_log(tmp_path, capfd):
    run("print('chatter'); answer = None", tmp_path)
    assert (tmp_path / "logs" / "engine.log").read_text() == "chatter\n"
    assert capfd.readouterr().out == ""


def test_the_child_is_offline_and_quiet_and_says_so_in_its_environment(tmp_path):
    names = ["HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE", "VLLM_NO_USAGE_STATS", "VLLM_ENABLE_V1_MULTIPROCESSING"]
    found = run("import os; answer = [os.environ.get(name) for name in job['names']]", tmp_path, names=names)
    assert found == ["1", "1", "1", "0"]
    assert "HF_HUB_OFFLINE" not in engine_env(TINY.engine, offline=False)


def test_what_a_child_leaves_in_the_temporary_folder_goes_with_it(tmp_path):
    found = run("import tempfile; answer = tempfile.mkdtemp()", tmp_path)
    assert not Path(found).exists()


def test_a_temporary_folder_with_too_long_a_name_for_sockets_is_not_used(tmp_path):
    assert scratch_env(tmp_path / ("long" * 20)) == {}
    short = Path(tempfile.mkdtemp(prefix="l", dir="/tmp"))
    assert scratch_env(short / "tmp") == {"TMPDIR": str(short / "tmp")}
    shutil.rmtree(short)


def test_labkits_modules_do_not_become_top_level_modules_of_the_child(tmp_path):
    source = "import importlib.util as u; answer = [n for n in job['names'] if u.find_spec(n)]"
    assert run(source, tmp_path, names=["ledger", "profiles", "processes", "guard", "json"]) == ["json"]


def test_vllms_cpu_build_answers_for_vllm(tmp_path):
    found = run("import importlib.metadata as m; answer = [m.version('vllm'), m.version('lm_eval')]", tmp_path)
    assert found[0].startswith("0.32.0")
    assert found[1] == "0.4.13"
    with pytest.raises(ProcessFailed, match="PackageNotFoundError"):
        run("import importlib.metadata as m; answer = m.version('no-such-package')", tmp_path)


def test_an_exception_is_told_in_its_own_words_with_the_place(tmp_path):
    with pytest.raises(ProcessFailed) as told:
        run("def check(limit):\n    raise ValueError(f'limit is {limit}')\n\ncheck(job['limit'])", tmp_path, limit=-1)
    assert told.value.what == "the engine child failed with ValueError: limit is -1"
    assert "script.py, line 2, in check" in told.value.why
    assert "engine.log" in told.value.fix


def test_a_script_without_an_answer_is_an_error(tmp_path):
    with pytest.raises(ProcessFailed, match="leaves nothing in `answer`"):
        run("result = 1", tmp_path)


def test_an_answer_that_json_cannot_hold_is_an_error(tmp_path):
    with pytest.raises(ProcessFailed, match=r"TypeError.*not JSON serializable"):
        run("answer = {1, 2}", tmp_path)


def test_an_argument_that_json_cannot_hold_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(UsageError, match="can't be written as JSON"):
        run("answer = 1", tmp_path, folder=tmp_path)
    assert not (tmp_path / "logs").exists()


def test_a_killed_child_is_told_as_killed(tmp_path):
    with pytest.raises(ProcessFailed, match="was killed"):
        run("import os; os.kill(os.getpid(), 9)", tmp_path)


def test_a_child_that_outlasts_its_deadline_is_stopped_with_all_that_it_started(tmp_path):
    source = (
        "import subprocess, time, pathlib\n"
        "child = subprocess.Popen(['sleep', '300'])\n"
        "pathlib.Path(job['pid']).write_text(str(child.pid))\n"
        "time.sleep(300)"
    )
    run("answer = 1", tmp_path)  # what it takes to import everything counts, too
    with pytest.raises(ProcessFailed, match="did not end within 8 s"):
        run(source, tmp_path, deadline_seconds=8, pid=str(tmp_path / "pid"))
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_the_child_runs_in_the_named_interpreter_even_one_without_labkit(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_ENGINE_PYTHON", sys._base_executable)
    source = "import sys, importlib.util as u; answer = [sys.prefix, u.find_spec('labkit') is None]"
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.chdir(tmp_path)
    assert run(source, tmp_path) == [sys.base_prefix, True]


def test_an_interpreter_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_ENGINE_PYTHON", str(tmp_path / "no-python"))
    with pytest.raises(ProcessFailed) as told:
        run("answer = 1", tmp_path)
    assert "LABKIT_ENGINE_PYTHON names" in told.value.fix
    assert "cannot start" in told.value.why


def test_the_telling_lines_of_a_log_are_its_causes_not_its_end(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "ValueError: of an earlier run\n"
        "(EngineCore pid=7) ERROR 11-21 08:00:00 [core.py:12] Traceback (most recent call last):\n"
        "(EngineCore pid=7) ERROR 11-21 08:00:00 [core.py:12]   File x, line 3, in y\n"
        "(EngineCore pid=7) ERROR 11-21 08:00:00 [core.py:12] torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\n"
        "INFO 11-21 08:00:01 [util.py:1] shutting down\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n" + "teardown noise\n" * 40
    )
    began = len("ValueError: of an earlier run\n")
    assert telling_lines(log, began) == ["torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"]
    assert telling_lines(tmp_path / "no such log") == []


def test_a_log_without_an_exception_tells_its_last_lines(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"line {i}\n\n" for i in range(30)))
    assert telling_lines(log) == [f"line {i}" for i in range(24, 30)]


GENERATE = """
from vllm import LLM, SamplingParams

model = LLM(job["model"], max_model_len=256, enforce_eager=True, dtype="bfloat16")
found = model.generate(job["prompts"], SamplingParams(temperature=0, max_tokens=8))
answer = [len(row.outputs[0].token_ids) for row in found]
"""


def test_an_offline_generation_script_runs_in_the_child(tmp_path):
    model = make_model(tmp_path / "model")
    found = run(GENERATE, tmp_path, 300, model=str(model), prompts=["Question: Tom has 3 books.", "Once"])
    assert len(found) == 2
    assert all(1 <= tokens <= 8 for tokens in found)
    assert "vllm" not in sys.modules
    assert os.path.getsize(tmp_path / "logs" / "engine.log") > 0


CUTLASS = "CutlassInt8ScaledMMLinearKernel"


@pytest.mark.parametrize(
    ("capability", "build", "of_the_user", "expected"),
    [
        ((12, 0), "cuda", "", CUTLASS),
        ((10, 3), "cuda", "SomeKernel", f"SomeKernel,{CUTLASS}"),
        ((9, 0), "cuda", "SomeKernel", None),
        ((12, 0), "cpu", "", None),
    ],
)
def test_on_blackwell_vllm_is_kept_from_the_int8_kernel_that_refuses_it(
    monkeypatch, capability, build, of_the_user, expected
):
    machine = Machine("a CPU", 8, 2**35, gpus=(Gpu("a GPU", 2**35, "nvidia", capability),))
    monkeypatch.setattr("labkit.hardware.this_machine", lambda: machine)
    monkeypatch.setattr("labkit.hardware.engine_build", lambda: build)
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", of_the_user)
    assert engine_env(TINY.engine, offline=True).get("VLLM_DISABLED_KERNELS") == expected


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
    packed = {"quantization_config": {"format": "pack-quantized"}}
    (tmp_path / "config.json").write_text(json.dumps(packed))
    assert number_type(TINY.engine, tmp_path) == "bfloat16", "vLLM's kernel for W4A16 on CPUs has no float32"
    (tmp_path / "config.json").write_text("{}")
    assert number_type(TINY.engine, tmp_path) == expected
