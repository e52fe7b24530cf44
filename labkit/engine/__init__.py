"""Engines live in a child process: a script goes in, a JSON answer comes out, and the memory is back when it ends.

vLLM keeps memory, threads and process groups that no `del` returns, and it may be installed in another interpreter
than the labs' (`LABKIT_ENGINE_PYTHON`). So whatever needs it runs by `run_script`: the notebook shows the script, this
room runs it under supervision, and vLLM's chatter goes to a log file. On a CPU such a child is a fork of a process that
has imported vLLM already (`forks`).
"""

from labkit.engine.environment import NO_INT8_ON_BLACKWELL, engine_env, model_length, number_type, scratch_env
from labkit.engine.forks import CHILD, end_fork_servers, guards_of_forks, launch
from labkit.engine.lending import Lender
from labkit.engine.logs import telling_lines
from labkit.engine.script import run_script

__all__ = [
    "CHILD",
    "NO_INT8_ON_BLACKWELL",
    "Lender",
    "end_fork_servers",
    "engine_env",
    "guards_of_forks",
    "launch",
    "model_length",
    "number_type",
    "run_script",
    "scratch_env",
    "telling_lines",
]
