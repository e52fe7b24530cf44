"""Engines are forked from a process that has imported what they need: on a CPU one takes three seconds, not eleven.

The first engine of a process starts a fork server (forkserver.py), which imports vLLM and lm-eval once; every
further one is a fork of it, with all that in memory. The server ends with this process, with `end_fork_servers`, or by
itself when for a while nothing was asked of it. In a lab of `labkit run` it may be one that the run has lent (lending).

A library reads some of its environment when it is imported, glibc and OpenMP read theirs when a process starts. So a
server is there for one environment, but for the variables of LATE and FOREIGN, which a fork gets as they are then.
Where there is a GPU no engine is forked: that has not been tried.
"""

from __future__ import annotations

import atexit
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from labkit import hardware, processes
from labkit.engine.forked import ForkServer, OwnForkServer
from labkit.engine.lending import Environment, lent

CHILD = Path(__file__).with_name("child.py")
SWITCH = "LABKIT_FORK_ENGINES"  # "0" starts every engine as a new process
MOST_SERVERS = 2  # each takes 0.8 GB of memory, which its forks share; more only while their engines run
# Variables that a fork gets as they are then. What vLLM and torch read when they use it, and not before:
LATE = {"TMPDIR", "VLLM_API_KEY", "OPENAI_API_KEY", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR"}
LATE |= {"TORCHDYNAMO_DISABLE"}  # what the fork sees to
LATE |= {"KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK"}  # what scikit-learn sets when it is imported, here or there
LATE |= {"PWD", "OLDPWD", "SHLVL", "_"}  # a shell's own
FOREIGN = ("LABKIT_", "JPY_", "PYTEST_", "_KFP_")  # how what nothing of theirs reads begins

_servers: dict[Environment, ForkServer] = {}  # the one asked last is last
_lock = threading.Lock()


def launch(
    command: Sequence[str], output: int, env: Mapping[str, str], cwd: Path | None, owner: int
) -> processes.Guard:
    """The `Launch` of engines: by a fork server on a CPU, else as a new process."""
    python = shutil.which(command[0])
    if os.environ.get(SWITCH) == "0" or not python or hardware.engine_build() != "cpu":
        return processes.guarded(command, output, env, cwd, owner)
    early = {name: value for name, value in env.items() if name not in LATE and not name.startswith(FOREIGN)}
    environment = Environment(python, frozenset(early.items()))
    with _lock:
        server = _servers.pop(environment, None)
        if server is None or not (server.useless or server.alive):
            if server:
                server.stop()
            _make_room()
            server = lent(environment) or OwnForkServer(python, early)
        _servers[environment] = server
        start = processes.guarded if server.useless else server.fork
        return start(command, output, env, cwd, owner)


def _make_room() -> None:
    """Ends the servers that were asked longest ago, but for those whose engines run, if there are too many."""
    for key, server in list(_servers.items()):
        if len(_servers) >= MOST_SERVERS and server.idle:
            _servers.pop(key).stop()


def guards_of_forks() -> list[int]:
    """The guards of all engines that run and were forked for this process; those of a lent server are not below it."""
    with _lock:
        return [guard for server in _servers.values() for guard in server.guards]


def end_fork_servers(*, idle_only: bool = False) -> None:
    """Ends the fork servers of this process, with all engines that were forked of them; or those without engines."""
    with _lock:
        for key, server in list(_servers.items()):
            if not idle_only or server.idle:
                _servers.pop(key).stop()


def _in_a_fork() -> None:
    """In a process that forks from this one, servers are its parent's: kept, so that none is tidied away."""
    global _servers, _lock
    _inherited.append(_servers)
    _servers, _lock = {}, threading.Lock()


_inherited: list[dict[Environment, ForkServer]] = []
atexit.register(end_fork_servers)
os.register_at_fork(after_in_child=_in_a_fork)
