"""What runs in the engine's interpreter: `vllm bench serve` for each command of the job, all in one process.

Started by labkit.engine.run_script: standard library and vllm only, no labkit. The job is {"commands": [[...], ...],
"go": FILE, "progress": FILE}; the answer has one object for each command. It begins when the first file is there; the
second says how many are done.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

KEPT = (
    "duration",
    "completed",
    "total_output_tokens",
    "request_throughput",
    "output_throughput",
    "median_ttft_ms",
    "p99_ttft_ms",
    "median_itl_ms",
    "p99_itl_ms",
)


def main(job: dict[str, Any]) -> list[dict[str, Any]]:
    from vllm.benchmarks import serve
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    serve.add_cli_args(parser)
    go, progress = Path(job["go"]), Path(job["progress"])
    while not go.exists():
        time.sleep(0.1)
    answers = []
    for command in job["commands"]:
        words = command[3:]  # after "vllm bench serve"
        result = serve.main(parser.parse_args([*words, "--disable-tqdm", "--ready-check-timeout-sec", "0"]))
        errors = [error for error in result.get("errors", []) if error]
        answers.append({name: result[name] for name in KEPT} | {"error": errors[0][-500:] if errors else ""})
        part = progress.with_suffix(".part")
        part.write_text(str(len(answers)))
        os.replace(part, progress)
    return answers


if "job" in globals():
    answer = main(globals()["job"])
