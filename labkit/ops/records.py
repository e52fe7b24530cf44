"""What a run leaves behind, as data: one result for each lab, the headline scores, and whether the run succeeded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "failed", "timeout", "dead-kernel", "skipped"]


@dataclass(frozen=True)
class Score:
    """A headline figure of one variant: the main task's accuracy, its standard error and number of samples."""

    value: float
    stderr: float | None
    n: int | None
    task: str


@dataclass(frozen=True)
class Skip:
    """A part of a lab that was left out, and the row of the capability matrix that says why."""

    part: str
    reason: str


@dataclass(frozen=True)
class Failure:
    """Where and how a lab ended: the cell, the error in one line, its traceback, and the end of the log."""

    where: str
    error: str
    traceback: str
    log_tail: str


@dataclass(frozen=True)
class LabResult:
    """How one lab ended. `notebook`, `page` (the same as HTML) and `log` are files of the output folder, or None.

    `peak_bytes` is the most memory that the lab, its kernel and engines held, shared pages once. `capability` says that
    a skipped lab was skipped because this machine can't do it. `figure` is the lab's headline in one line.
    `before_seconds` is what it took when it last passed in this workspace, 0 if it never did. `unchanged`: it was left
    alone, for nothing that goes into it has changed since.
    """

    name: str
    verdict: Verdict
    reason: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0
    skipped: tuple[Skip, ...] = ()
    notebook: str | None = None
    page: str | None = None
    log: str | None = None
    figure: str = ""
    capability: bool = False
    failure: Failure | None = None
    before_seconds: float = 0.0
    unchanged: bool = False

    @property
    def acceptable(self) -> bool:
        """Whether the run can still be a success: passed, or skipped for a reason in the capability matrix."""
        return self.verdict == "passed" or (self.verdict == "skipped" and self.capability)


@dataclass(frozen=True)
class RunReport:
    """A run so far. `complete` is False until every lab has ended; `stopped` names what ended the run before that.

    level: `Machine.level`. probe_seconds: what `labkit.pace` compares machines by.
    """

    profile: str
    seconds: float
    headline: dict[str, Score]
    labs: tuple[LabResult, ...]
    complete: bool
    stopped: str
    run: str
    started: str
    workspace: str
    parameters: dict[str, object]
    machine: str
    level: str
    probe_seconds: float
    jobs: int = 1
    notes: tuple[str, ...] = ()

    @property
    def succeeded(self) -> bool:
        return self.complete and not self.stopped and all(lab.acceptable for lab in self.labs)
