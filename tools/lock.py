"""Compiles the locks from pyproject.toml: `make lock`; `python -m tools.lock --check` says whether they are current.

A lock holds every package of the environment, exact and hashed, for Linux on x86-64 and Python 3.11. What is locked
already stays as it is unless pyproject.toml forbids it; `--upgrade` takes the newest instead. torch's CPU wheel has a
lock of its own: it comes from another place than the rest, and one pip command checks all hashes or none. The pipeline
has one too, for an environment of its own, from `requirements/kfp.in`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = Path("requirements")
ENTRY = re.compile(r"^[A-Za-z0-9].*?(?=^[A-Za-z0-9]|\Z)", re.MULTILINE | re.DOTALL)
LABS = "pyproject.toml --extra=dev"
COMMON = (
    "--python-version=3.11 --python-platform=x86_64-manylinux_2_28 --generate-hashes --no-header --no-annotate "
    "--no-emit-index-url --no-emit-find-links --quiet"
)


def compile_lock(source: str, old: str, options: Sequence[str]) -> list[str]:
    """The packages of one complete lock, each with its hashes. source: the file to compile, and what is taken of it.

    `old` is the lock so far, whose versions are kept where they still fit. Raises subprocess.CalledProcessError, with
    uv's words in `stderr`, when there is no solution or no index answers.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lock.txt"
        out.write_text(old)
        words = [*source.split(), f"--output-file={out}", *COMMON.split(), *options]
        command = [sys.executable, "-m", "uv", "pip", "compile", *words]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        return [entry.rstrip() + "\n" for entry in ENTRY.findall(out.read_text())]


def wheel_places(torch_index: str) -> list[str]:
    """Where torch's CPU wheel may be: as pip is configured to find wheels, then in a flat page of `torch_index`."""
    asked = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True)
    configured = re.findall(r"find-links='(.*)'", asked.stdout)
    places = " ".join([os.environ.get("PIP_FIND_LINKS", ""), *configured]).split()
    return list(dict.fromkeys(places)) + ([f"{torch_index.rstrip('/')}/torch/"] if torch_index else [])


def compile_cpu(old: str, options: Sequence[str], places: Sequence[str]) -> list[str]:
    """The packages of the CPU lock with torch among them, from the first place that has torch's CPU wheel."""
    failure: subprocess.CalledProcessError | None = None
    for place in places:
        try:
            given = [f"--override={FOLDER}/overrides-cpu.txt", *options, f"--find-links={place}"]
            return compile_lock(f"{LABS} --extra=cpu", old, given)
        except subprocess.CalledProcessError as error:
            failure = error
    raise failure or SystemExit("torch's CPU wheel: no place to look for it; give --torch-index")


def all_locks(options: Sequence[str], torch_index: str) -> dict[Path, str]:
    """The text of each lock as it should be now."""
    old = {name: (ROOT / FOLDER / f"{name}.txt").read_text() for name in ("cpu", "gpu", "torch-cpu", "kfp")}
    cpu = compile_cpu(old["torch-cpu"] + old["cpu"], options, wheel_places(torch_index))
    gpu = [f"--override={FOLDER}/overrides.txt", *options]
    packages = {
        "gpu": compile_lock(f"{LABS} --extra=gpu", old["gpu"], gpu),
        "cpu": [entry for entry in cpu if not entry.startswith("torch==")],
        "torch-cpu": [entry for entry in cpu if entry.startswith("torch==")],
        "kfp": compile_lock(f"{FOLDER}/kfp.in", old["kfp"], options),
    }
    return {FOLDER / f"{name}.txt": "".join(entries) for name, entries in packages.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the locks, or with --check says which differ; exit code 1 if one does, or if they can't be compiled."""
    parser = argparse.ArgumentParser(prog="python -m tools.lock", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a lock would change")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions instead of the locked ones")
    parser.add_argument("--torch-index", default="", metavar="URL", help="where torch's CPU wheels are")
    args = parser.parse_args(arguments)
    try:
        locks = all_locks(["--upgrade"] if args.upgrade else [], args.torch_index)
    except subprocess.CalledProcessError as error:
        print(error.stderr, file=sys.stderr)
        return 1
    stale = [path for path, text in locks.items() if (ROOT / path).read_text() != text]
    for path in stale:
        print(f"{path}: {'is not what pyproject.toml asks for; run `make lock`' if args.check else 'changed'}")
        if not args.check:
            (ROOT / path).write_text(locks[path])
    if not stale:
        print("The locks are current.")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
