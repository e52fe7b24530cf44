"""Whether this environment is the locked one: installed versions against requirements/*.txt."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LOCKS = Path(__file__).parents[2] / "requirements"
LockName = Literal["cpu", "gpu"]
FILES: dict[LockName, tuple[str, ...]] = {"cpu": ("torch-cpu.txt", "cpu.txt"), "gpu": ("gpu.txt",)}


@dataclass(frozen=True)
class LockState:
    """`name` of the lock, the packages of it that are not installed, and those that differ as `name: found, locked`."""

    name: str
    found: bool
    missing: tuple[str, ...] = ()
    different: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        return self.found and not self.missing and not self.different

    def __str__(self) -> str:
        if not self.found:
            return f"there are no lock files in {LOCKS}, so the environment can't be compared"
        if self.equal:
            return f"equals requirements/{self.name}.txt"
        parts = [f"missing {', '.join(self.missing)}" if self.missing else "", *self.different]
        return f"differs from requirements/{self.name}.txt: {'; '.join(filter(None, parts))}"


def locked_versions(files: Sequence[Path]) -> dict[str, str]:
    """Package (normalized name) to exact version, for the lines of pip requirement files that apply here."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    versions: dict[str, str] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            if not re.match(r"[A-Za-z0-9]", line):
                continue  # comments, hashes, options
            requirement = Requirement(re.split(r"\s+(?:\\|--hash|#)", line)[0].rstrip(" \\"))
            exact = [s.version for s in requirement.specifier if s.operator == "=="]
            if exact and (requirement.marker is None or requirement.marker.evaluate()):
                versions[canonicalize_name(requirement.name)] = exact[0]
    return versions


def installed_versions() -> dict[str, str]:
    """Package (normalized name) to version, of everything that this interpreter finds."""
    from packaging.utils import canonicalize_name

    return {canonicalize_name(found.name): found.version for found in importlib.metadata.distributions() if found.name}


def compare_lock(locked: dict[str, str], installed: dict[str, str], name: str) -> LockState:
    """What of a lock is missing or different; further packages (labkit, pip's own) don't matter."""
    missing = tuple(sorted(locked.keys() - installed.keys()))
    different = tuple(
        f"{package}: installed {installed[package]}, locked {version}"
        for package, version in sorted(locked.items())
        if package in installed and installed[package] != version
    )
    return LockState(name, True, missing, different)


def lock_state(name: LockName, folder: Path = LOCKS) -> LockState:
    """This environment against the lock of that name."""
    files = [folder / file for file in FILES[name]]
    if not all(file.is_file() for file in files):
        return LockState(name, False)
    return compare_lock(locked_versions(files), installed_versions(), name)
