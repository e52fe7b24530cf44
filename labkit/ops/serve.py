"""`labkit serve CHECKPOINT`: a server at the shell, until Ctrl-C, with the line that asks it something."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from labkit import checkpoint, hardware, processes
from labkit.errors import UsageError
from labkit.profiles import Profile
from labkit.serving import KEY_VARIABLE, Server, compiling, serve
from labkit.transfer import is_address
from labkit.workspace import Workspace

LOOK_SECONDS = 0.5


def find_checkpoint(named: str, workspace: Workspace) -> Path:
    """A folder, the name of one in the workspace's `checkpoints/`, or one that is brought here by its address.

    Raises UsageError if it is none of them.
    """
    if is_address(named):
        return checkpoint.resolve_model(named, offline=False, cache=workspace.models)
    for folder in (Path(named).expanduser(), workspace.checkpoints / named):
        if (folder / "config.json").is_file():
            return folder.absolute()
    known = sorted(path.parent.name for path in workspace.checkpoints.glob("[!.]*/config.json"))
    raise UsageError(
        f"{named!r} is no folder with a config.json, and no checkpoint of {workspace.root}",
        fix=f"name one of: {', '.join(known)}" if known else "make one first: labkit run 01",
    )


def serve_until_stopped(
    named: str,
    profile: Profile,
    workspace: Workspace,
    *,
    port: int = 0,
    eager: bool = False,
    options: Sequence[str] = (),
    tell: Callable[[str], None] = print,
) -> int:
    """Serves a checkpoint until Ctrl-C, SIGTERM or the server's own end; returns the exit code.

    The key is $VLLM_API_KEY if that is set, else random and in a file that only this user can read: never in the
    output, which a terminal keeps and a workshop's screen shows.
    """
    folder = find_checkpoint(named, workspace)
    engine = profile.engine if eager else compiling(profile.engine)
    if not eager and engine.enforce_eager:
        tell(f"Without compiling, which makes it slower: {hardware.compile_lacks(processes.engine_python())}")
    log = workspace.root / "logs" / "serve" / f"{folder.name}.log"
    compiles = "" if engine.enforce_eager else "; compiling takes up to a minute at the first start"
    tell(f"Starting vLLM for {folder}{compiles}")
    with _sigterm_as_exit(), tempfile.TemporaryDirectory(prefix="labkit-serve-") as private:
        cache = workspace.root / "cache" / "vllm"
        try:
            with serve(folder, engine=engine, log=log, port=port, options=options, cache=cache) as server:
                for line in _ready(server, Path(private) / "key"):
                    tell(line)
                while True:
                    server.require_alive()
                    time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            tell("Stopped.")
            return 128 + signal.SIGINT


def _ready(server: Server, key_file: Path) -> Iterator[str]:
    """What to say of a running server; a random key goes into `key_file` first."""
    if os.environ.get(KEY_VARIABLE):
        key = f"${KEY_VARIABLE}"
    else:
        key_file.touch(mode=0o600)
        key_file.write_text(server.key, encoding="utf-8")
        key = f"$(cat {shlex.quote(str(key_file))})"
    ready = f"in {server.dtype}, ready after {server.ready_seconds:.0f} s, log {server.log}"
    yield f"{server.model} answers at {server.url} ({ready}). Try:"
    yield f"  {server.curl(key)}"
    yield "Ctrl-C stops it."


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """SIGTERM leaves the blocks in order, so that the server is stopped and the key file removed."""

    def leave(number: int, _: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
