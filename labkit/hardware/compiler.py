"""Whether vLLM can compile a model here: torch's inductor writes C++ and builds it with the system's compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from labkit.errors import ProcessFailed

COMPILERS = ("g++", "clang++", "c++")
_INCLUDE = "import sysconfig; print(sysconfig.get_path('include'))"


@cache
def compile_lacks(python: str) -> str:
    """What is missing for compiling with an interpreter, as a sentence; "" if nothing is."""
    if not any(shutil.which(name) for name in filter(None, (os.environ.get("CXX"), *COMPILERS))):
        return f"No C++ compiler ({', '.join(COMPILERS)}) is on the PATH: on Debian and Ubuntu, apt install g++."
    try:
        asked = subprocess.run([python, "-c", _INCLUDE], capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise ProcessFailed(
            f"{python} could not be asked for its headers: {error}",
            why="labkit can't know whether its engine compiles",
            fix="check LABKIT_ENGINE_PYTHON, or unset it to use this interpreter",
        ) from error
    header = Path(asked.stdout.strip()) / "Python.h"
    if not header.is_file():
        return f"Python's headers are missing ({header}): on Debian and Ubuntu, apt install python3-dev."
    return ""
