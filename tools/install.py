"""Installs locks into an environment: `python tools/install.py LOCK... [--python PYTHON] [--index URL]`.

uv installs them, in a third of pip's time; it is asked to look where pip is configured to look, and comes by pip with
the hash that a lock has. Where it can't be had, or fails, pip itself installs the lock.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

EXACTLY = ["--quiet", "--no-deps", "--require-hashes"]
UV_ENTRY = re.compile(r"^uv==.*?(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
SECTIONS = ("global", "install", ":env:")  # of pip's settings; the last one counts
IN_UVS_WORDS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "no-index": "UV_NO_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "timeout": "UV_HTTP_TIMEOUT",
    "default-timeout": "UV_HTTP_TIMEOUT",
}


def pip(python: str, *arguments: str) -> list[str]:
    return [python, "-m", "pip", "--disable-pip-version-check", *arguments]


def as_pip_looks(python: str) -> dict[str, str]:
    """What pip is configured with, in its files and its environment, as uv's environment has it."""
    listed = subprocess.run(pip(python, "config", "list"), capture_output=True, text=True, check=True).stdout
    given = [found for found in re.findall(r"^([\w:]+)\.([\w-]+)='(.*)'$", listed, re.M) if found[0] in SECTIONS]
    given.sort(key=lambda found: SECTIONS.index(found[0]))
    known = {IN_UVS_WORDS[name]: value for _, name, value in given if name in IN_UVS_WORDS}
    if "UV_FIND_LINKS" in known:
        known["UV_FIND_LINKS"] = ",".join(known["UV_FIND_LINKS"].split())
    return known


def has_uv(locks: list[Path]) -> bool:
    """Whether the Python that runs this has uv, or gets it now as a lock has it."""
    if find_spec("uv"):
        return True
    entry = next((found[0] for lock in locks if (found := UV_ENTRY.search(lock.read_text()))), None)
    if entry is None:
        return False
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as only_uv:
        only_uv.write(entry)
        only_uv.flush()
        command = pip(sys.executable, "install", *EXACTLY, "-r", only_uv.name)
        return subprocess.run(command, capture_output=True).returncode == 0


def main() -> int:
    """Exit code 0 if every lock is there whole."""
    asked = argparse.ArgumentParser()
    asked.add_argument("locks", nargs="+", type=Path)
    asked.add_argument("--python", default=sys.executable, help="of the environment to install into")
    asked.add_argument("--index", help="where to look for what is nowhere else")
    given = asked.parse_args()
    indexes = [[], ["--index-url", given.index]] if given.index else [[]]
    ways = [pip(given.python, "install", *EXACTLY, *index) for index in indexes]
    if has_uv(given.locks):
        # Compiled as by pip: where nobody may write into the environment, or PYTHONDONTWRITEBYTECODE is set, as in many
        # containers, each import would compile its modules anew.
        uv = [sys.executable, "-m", "uv", "pip", "install", "--python", given.python, "--compile-bytecode", *EXACTLY]
        # Every index counts, as for pip: the hash says that it is the right file.
        ways[:0] = [[*uv, "--index-strategy=unsafe-best-match", *index] for index in indexes]
    environment = {**os.environ, **as_pip_looks(given.python)}
    for lock in given.locks:
        errors = []
        for way in ways:
            done = subprocess.run([*way, "-r", str(lock)], env=environment, stderr=subprocess.PIPE, text=True)
            if done.returncode == 0:
                break
            errors.append(f"{' '.join(way)}:\n{done.stderr.strip()}")
        else:
            print(f"{lock} could not be installed.\n" + "\n".join(errors), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
