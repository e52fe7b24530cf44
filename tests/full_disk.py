"""A disk with no room, for one child process: the kernel refuses to let any file grow past a size."""

from __future__ import annotations

import resource
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path


def run_with_room(
    command: list[str], file_bytes: int, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command in which every write beyond `file_bytes` of a file fails as on a full disk."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with an error, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    return subprocess.run(
        command, preexec_fn=limit, env=env, cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )
