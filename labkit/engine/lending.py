"""One fork server for all labs of a run: what it has imported is lent to each lab that starts after it is ready.

Which environment a lab's engines want, only the lab knows. So the first one that starts a server of its own tells the
run (`lent` does), and the run has one for the labs to come. A lab is then started by that server: as the child of one
of its forks, which serves the lab's engines. All of a lab is so below one guard, with such a server or without.

In a lab LENDING names the place in a folder of the run's: requests for forks go to the socket PLACE-DIGEST, if it is
there, of the environment with that digest; the environment that a lab wants goes to the socket `wanted` beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from labkit import processes
from labkit.engine.forked import ForkServer, OwnForkServer

LENDING = "LABKIT_LENDING"  # the environment variable
WANTED = "wanted"
LONGEST_FOLDER = 107 - len("/000-00000000")  # a socket's name has 107 bytes


@dataclass(frozen=True, repr=False)  # it may hold secrets
class Environment:
    """What a fork server was started with, as far as it must be what an engine is to have."""

    python: str
    variables: frozenset[tuple[str, str]]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.as_json().encode()).hexdigest()[:8]  # a socket's name is short

    def as_json(self) -> str:
        return json.dumps([self.python, sorted(self.variables)])

    @classmethod
    def from_json(cls, text: str) -> Environment:
        python, variables = json.loads(text)
        return cls(python, frozenset((name, value) for name, value in variables))


def lent(environment: Environment) -> ForkServer | None:
    """The run's server, as far as it is lent to this lab; None where it has another environment: the run is told."""
    place = os.environ.get(LENDING)
    if not place:
        return None
    asked = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with suppress(OSError):
        asked.connect(f"{place}-{environment.digest}")
        return ForkServer(asked)
    asked.close()
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:  # there may be no run any more
        told.setblocking(False)
        told.sendto(environment.as_json().encode(), str(Path(place).with_name(WANTED)))
    return None


class Lender:
    """The run's side. Its server starts with the first environment that a lab tells, and ends with `stop`."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="labkit-lending-", ignore_cleanup_errors=True)
        self._wanted = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._wanted.setblocking(False)
        if len(os.fsencode(self._folder.name)) <= LONGEST_FOLDER:  # else no lab can tell, and each has its own
            self._wanted.bind(str(Path(self._folder.name) / WANTED))
        self._numbers = count()
        self._environment: Environment | None = None
        self._server: OwnForkServer | None = None

    def listen(self) -> None:
        """Starts the server, if it was asked for; to be called again and again while further labs wait."""
        with suppress(BlockingIOError):
            told = Environment.from_json(self._wanted.recv(2**20).decode())
            if self._server and not self._server.alive:  # nothing was asked of it for long, or it was killed
                self._server.stop()
                self._server = None
            if not self._server:
                self._environment, self._server = told, OwnForkServer(told.python, dict(told.variables))

    @property
    def settled(self) -> bool:
        """Whether the server does nothing by itself just now: it imports for seconds once it has started."""
        return not self._server or self._server.ready or not self._server.alive

    def launch(
        self, command: Sequence[str], output: int, env: Mapping[str, str], cwd: Path | None, owner: int
    ) -> processes.Guard:
        """A `Launch` of labs: by the server if it is ready, else as a new process."""
        place = Path(self._folder.name) / str(next(self._numbers))
        env = {**env, LENDING: str(place)}
        if not (self._server and self._environment and self._server.ready):
            return processes.guarded(command, output, env, cwd, owner)
        request = {"command": list(command), "socket": f"{place}-{self._environment.digest}"}
        return self._server.ask(request, command, output, env, cwd, owner)

    def stop(self) -> None:
        """Ends the server, and all labs that it started."""
        if self._server:
            self._server.stop()
        self._wanted.close()
        self._folder.cleanup()
