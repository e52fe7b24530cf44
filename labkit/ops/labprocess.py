"""One lab in a process tree of its own: started, watched, judged.

The verdict comes from the exit code and the end mark, a secret that only the lab's last cell writes: `sys.exit(0)` in a
cell gives exit code 0 too, and a saved notebook calls cells completed that never ran.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from labkit.ops import stillness
from labkit.ops.execute import DEAD_KERNEL, KERNEL, Job
from labkit.ops.notebooks import Lab, describe_cell, last_started_cell
from labkit.ops.records import Failure, LabResult, Skip, Verdict
from labkit.ops.text import duration, plain
from labkit.processes import Child, Launch, guarded, log_tail
from labkit.quiet import FOLDER

KERNEL_START_SECONDS = 300  # a kernel on a busy machine; papermill's 60 have been too few
SIGKILLED = 128 + 9
MOST_OUTPUT_BYTES = 100_000_000  # a loop that prints would fill the disk of all labs


@dataclass(frozen=True)
class Setup:
    """What all labs of a run share. `scratch` is a folder of this run only, on the file system of `output`."""

    output: Path
    scratch: Path
    env: Mapping[str, str]
    timeout_seconds: float
    launch: Launch = guarded


def write_kernel(scratch: Path) -> Path:
    """A kernel that is this interpreter, and the folder to put on JUPYTER_PATH so that it goes before all others.

    Without it a `python3` kernel that some other environment registered for the user would run the labs.
    """
    folder = scratch / "jupyter"
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "Python 3 (labkit)", "language": "python", "metadata": {"debugger": True}}
    (folder / "kernels" / KERNEL).mkdir(parents=True)
    (folder / "kernels" / KERNEL / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder


def judge(code: int, reached_end: bool) -> tuple[Verdict, str]:
    """Verdict and reason from the exit code of the execution and whether the end mark was written."""
    if code == 0 and reached_end:
        return "passed", ""
    if code == 0:
        return "failed", "it ended without reaching its last cell: the end mark is missing"
    if code == DEAD_KERNEL:
        return "dead-kernel", "its kernel died"
    if code in (SIGKILLED, -9):
        return "failed", "it was killed from outside, perhaps because the machine ran out of memory"
    return "failed", f"it ended with exit code {code}"


class RunningLab:
    """A lab that has been started. `poll` until it returns a result, or `stop` it."""

    def __init__(self, lab: Lab, parameters: Mapping[str, Any], setup: Setup) -> None:
        self.lab, self._setup = lab, setup
        self._folder = setup.scratch / lab.name
        self._folder.mkdir()
        self._log = setup.output / f"{lab.name}.log"
        self._log.unlink(missing_ok=True)
        self._token = secrets.token_hex(16)
        self._stands_since: float | None = None
        self._stood_seconds = 0.0
        job = Job(
            notebook=str(lab.path),
            executed=str(self._executed),
            failure=str(self._folder / "failure.json"),
            parameters=dict(parameters),
            start_timeout_seconds=KERNEL_START_SECONDS,
        )
        job_file = self._folder / "job.json"
        job_file.write_text(json.dumps(asdict(job)), encoding="utf-8")
        env = {
            **setup.env,
            "LABKIT_LAB": lab.name,
            "LABKIT_END_TOKEN": self._token,
            "LABKIT_END_FILE": str(self._folder / "end"),
            "LABKIT_SKIPS_FILE": str(self._folder / "skips.jsonl"),
            FOLDER: str(self._folder),
        }
        self._began = time.monotonic()
        command = [sys.executable, "-m", "labkit.ops.execute", str(job_file)]
        self._child = Child(command, self._log, env, lab.path.parent, setup.launch)

    @property
    def _executed(self) -> Path:
        return self._folder / f"{self.lab.name}.ipynb"

    def poll(self) -> LabResult | None:
        """The result once the lab has ended or outlasted its time (it is stopped then), else None."""
        code = self._child.poll()
        if code is not None:
            self._child.stop()
            return self._result(*judge(code, self._reached_end()))
        if time.monotonic() - self._began - self._stood > self._setup.timeout_seconds:
            self._child.stop()
            return self._result("timeout", f"it did not end within {duration(self._setup.timeout_seconds)}")
        if self._log.exists() and self._log.stat().st_size > MOST_OUTPUT_BYTES:
            self._child.stop()
            return self._result("failed", f"it wrote more than {MOST_OUTPUT_BYTES // 10**6} MB of output")
        return None

    @property
    def asks_for_quiet(self) -> bool:
        """Whether the lab measures speed just now, or waits to."""
        return stillness.asks(self._folder)

    def grant_quiet(self) -> None:
        stillness.grant(self._folder)

    def stand(self, still: bool) -> None:
        """Whether the lab, with all that it started, stands still. The time that it does counts for no time limit."""
        if still and self._stands_since is None:
            self._stands_since = time.monotonic()
            stillness.stand_still(self._child.pid)
        elif not still and self._stands_since is not None:
            stillness.go_on(self._child.pid)
            self._stood_seconds, self._stands_since = self._stood, None

    @property
    def _stood(self) -> float:
        """Seconds that it has stood still, this time and before."""
        return self._stood_seconds + (time.monotonic() - self._stands_since if self._stands_since else 0.0)

    def ask_to_stop(self) -> None:
        """Begins to stop the lab without waiting for it, so that several can end at the same time."""
        self.stand(False)
        self._child.ask_to_stop()

    def stop(self, reason: str) -> LabResult:
        """Ends the lab with all that it started."""
        self._child.stop()
        return self._result("failed", reason)

    def _reached_end(self) -> bool:
        mark = self._folder / "end"
        return mark.is_file() and mark.read_text(encoding="utf-8").strip() == self._token

    def _result(self, verdict: Verdict, reason: str) -> LabResult:
        failure = None if verdict == "passed" else self._failure(reason)
        if failure:
            first_line = failure.error.split("\n")[0]
            if verdict == "failed" and first_line.startswith("Unsupported: "):  # labkit's word for a row of the matrix
                verdict, first_line = "skipped", " ".join(failure.error.removeprefix("Unsupported: ").split())
            reason = ": ".join(filter(None, [failure.where, first_line]))
        finished = self._child.finished()
        result = LabResult(
            name=self.lab.name,
            verdict=verdict,
            reason=reason,
            seconds=round(finished.wall_seconds, 3),
            peak_bytes=finished.peak_bytes,
            skipped=self._skips(),
            log=self._log.name if self._log.exists() else None,
            capability=verdict == "skipped",
            failure=failure,
        )
        return self._keep_notebook(result)

    def _failure(self, reason: str) -> Failure:
        tail = plain(log_tail(self._log, lines=40))
        try:
            found = json.loads((self._folder / "failure.json").read_text(encoding="utf-8"))
            where = describe_cell(found["cell"], found["source"])
            return Failure(where, plain(found["error"]), plain(found["traceback"]), tail)
        except (OSError, ValueError):
            return Failure(last_started_cell(self._executed), reason, "", tail)

    def _skips(self) -> tuple[Skip, ...]:
        path = self._folder / "skips.jsonl"
        if not path.exists():
            return ()
        skips = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                skips.append(Skip(**json.loads(line)))
            except (ValueError, TypeError):  # a lab that was killed while it wrote
                skips.append(Skip("a part that could not be read", line))
        return tuple(skips)

    def _keep_notebook(self, result: LabResult) -> LabResult:
        """Moves the executed copy into the output folder if it is whole, so that a full disk destroys no older one."""
        final = self._setup.output / self._executed.name
        try:
            json.loads(self._executed.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            kept = "; an older copy was left as it was" if final.exists() else ""
            lost = f"its executed copy could not be written whole{kept}"
            return replace(result, reason="; ".join(filter(None, [result.reason, lost])))
        os.replace(self._executed, final)
        return replace(result, notebook=final.name)
