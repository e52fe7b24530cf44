"""`labkit serve CHECKPOINT`: a server at the shell, until Ctrl-C, with the line that asks it something."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from labkit import checkpoint, hardware
from labkit import serve as serving
from labkit.errors import UsageError
from labkit.profiles import Profile
from labkit.store import Context, Workspace
from labkit.transfer import is_address


def find_checkpoint(named: str, workspace: Workspace) -> Path:
    """A folder, the name of one in the workspace's `checkpoints/`, or one that is downloaded by its address.

    Raises UsageError if it is none of them.
    """
    if is_address(named):
        return checkpoint.resolve_model(named, offline=False, cache=workspace.models)
    for folder in (Path(named).expanduser(), workspace.checkpoints / named):
        if (folder / "config.json").is_file():
            return folder.absolute()
    known = sorted(path.parent.name for path in workspace.checkpoints.glob("[!.]*/config.json"))
    what = f"{named!r} is no folder with a config.json, and no checkpoint of {workspace.root}"
    raise UsageError(what, fix=f"name one of: {', '.join(known)}" if known else "make one first: labkit run 01")


def serve_until_stopped(
    named: str,
    profile: Profile,
    workspace: Workspace,
    port: int,
    eager: bool,
    options: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Serves a checkpoint until Ctrl-C, SIGTERM or the server's own end.

    The key is $VLLM_API_KEY if that is set, else random and in a file that only this user can read: never in the
    output, which a terminal keeps and a workshop's screen shows.
    """
    folder = find_checkpoint(named, workspace)
    context = Context(workspace, profile if eager else replace(profile, engine=serving.compiling(profile.engine)))
    compiles, log = not context.engine.enforce_eager, workspace.root / "logs" / "serve" / f"{folder.name}.log"
    if not eager and not compiles:
        say(f"Without compiling, which makes it slower: {hardware.compile_lacks()}")
    say(f"Starting vLLM for {folder}{'; compiling takes up to a minute at the first start' * compiles}")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # leaves the block below in order
    with (
        tempfile.TemporaryDirectory(prefix="labkit-serve-") as private,
        serving.serve(folder, context, log=log, port=port, options=options) as server,
    ):
        key, key_file = f"${serving.KEY_VARIABLE}", Path(private) / "key"
        if not os.environ.get(serving.KEY_VARIABLE):
            key_file.touch(mode=0o600)
            key_file.write_text(server.key, encoding="utf-8")
            key = f"$(cat {shlex.quote(str(key_file))})"
        ready = f"in {server.dtype}, ready after {server.ready_seconds:.0f} s, log {server.log}"
        say(f"{server.model} answers at {server.url} ({ready}). Try:\n  {server.curl(key)}\nCtrl-C stops it.")
        while True:
            server.require_alive()
            time.sleep(0.5)
