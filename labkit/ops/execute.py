"""Executes one notebook with papermill. The runner's child: `python -m labkit.ops.execute JOB.json`.

Exit codes as papermill's own command has them: 0 when the last cell ended, 1 for an error, 138 for a dead kernel. The
failing cell is written down from the exception that papermill raises: the saved notebook can't be trusted on it.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labkit.ops.startup import skip_grammar_of_addresses

DEAD_KERNEL = 138
KERNEL = "python3"  # the runner puts a kernel of this name, with its own interpreter, before all others


@dataclass(frozen=True)
class Job:
    """What to execute. `executed` is written while the notebook runs; `failure` only when a cell fails."""

    notebook: str
    executed: str
    failure: str
    parameters: dict[str, Any]
    start_timeout_seconds: int


@dataclass(frozen=True)
class CellError:
    """The error that ended a notebook: the cell's position from 0, its source, and what it raised."""

    cell: int
    source: str
    error: str
    traceback: str


def literal_path(path: str) -> str:
    """A path that papermill, which formats paths with str.format, leaves as it is."""
    return path.replace("{", "{{").replace("}", "}}")


def main(job_file: str) -> int:
    """Runs the job and returns the exit code."""
    skip_grammar_of_addresses()
    job = Job(**json.loads(Path(job_file).read_text(encoding="utf-8")))
    from nbclient.exceptions import DeadKernelError
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    try:
        execute_notebook(
            literal_path(job.notebook),
            literal_path(job.executed),
            parameters=job.parameters,
            kernel_name=KERNEL,
            language="python",
            progress_bar=False,
            log_output=True,
            start_timeout=job.start_timeout_seconds,
            cwd=str(Path(job.notebook).parent),
        )
    except DeadKernelError:
        traceback.print_exc()
        return DEAD_KERNEL
    except PapermillExecutionError as error:
        found = CellError(error.cell_index, error.source, f"{error.ename}: {error.evalue}", "\n".join(error.traceback))
        Path(job.failure).write_text(json.dumps(asdict(found)), encoding="utf-8")
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
