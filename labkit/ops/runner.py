"""Runs labs: each in its own process tree, as soon as the labs that it needs have passed; judges and reports them.

The report is written again after every lab, so that a run killed at any moment leaves one that is true: `complete` is
false in it, and what had not ended says so.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.ledger import utc_now
from labkit.ops.headline import lab_figure, run_headlines, scores
from labkit.ops.history import History
from labkit.ops.labprocess import RunningLab, Setup, write_kernel
from labkit.ops.notebooks import Lab
from labkit.ops.pages import pages_of_run
from labkit.ops.plan import values_for
from labkit.ops.prepare import Prepared, absolute, absolute_target
from labkit.ops.records import LabResult, RunReport
from labkit.ops.report import write_report
from labkit.ops.signals import StopSignals
from labkit.ops.text import duration
from labkit.workspace import STAGING

TICK_SECONDS = 0.2
UNFINISHED = "it had not ended when this report was written"


def execute(prepared: Prepared, tell: Callable[[str], None] = print) -> tuple[RunReport, Path]:
    """Runs the labs; returns the report and the folder that holds it, executed notebooks and logs.

    Stops in order on Ctrl-C, SIGTERM and SIGHUP: `RunReport.stopped` then names the signal.
    """
    output = prepared.output or prepared.workspace.new_run()
    output.mkdir(parents=True, exist_ok=True)
    for left in output.glob(f"{STAGING}run-*"):  # what a killed runner could not remove
        if not Path(f"/proc/{left.name.removeprefix(f'{STAGING}run-')}").exists():
            shutil.rmtree(left, ignore_errors=True)
    scratch = output / f"{STAGING}run-{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        with StopSignals() as signals:
            report = _Run(prepared, output, scratch, tell).go(signals)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report, output


class _Run:
    """The state of one run: which labs wait, which run, which have ended."""

    def __init__(self, prepared: Prepared, output: Path, scratch: Path, tell: Callable[[str], None]) -> None:
        self._prepared, self._output, self._tell = prepared, output, tell
        self._waiting = list(prepared.labs)
        self._running: list[RunningLab] = []
        self._results: dict[str, LabResult] = {}
        self._began, self._started = time.monotonic(), utc_now()
        self._id = output.name if prepared.output is None else _run_id()
        self._setup = Setup(output, scratch, _environment(prepared, self._id, scratch), prepared.timeout_seconds)
        self._stopped = ""
        self._history = History(prepared)
        self._keys: dict[str, str] = {}  # of the labs that were started, at their start
        self._origin: dict[str, str] = {}  # the run that an unchanged lab's figures are from

    def go(self, signals: StopSignals) -> RunReport:
        self._write()
        while (self._waiting or self._running) and not signals.received:
            self._skip_impossible()
            self._start_ready()
            time.sleep(TICK_SECONDS)
            for running in list(self._running):
                result = running.poll()
                if result:
                    self._running.remove(running)
                    self._end(result)
        if signals.received and (self._waiting or self._running):
            self._stopped = signals.name
            self._stop_all()
        self._write()  # before the pages: they take a moment, and the verdicts are known
        found = self._results
        executed = [(lab, found[lab.name].notebook) for lab in self._prepared.labs if lab.name in found]
        for name, page in pages_of_run(executed, self._output, self._tell).items():
            found[name] = replace(found[name], page=page)
        return self._write()

    def _skip_impossible(self) -> None:
        """Skips every waiting lab that can't run any more: a needed lab did not pass, or this machine can't do it."""
        for lab in list(self._waiting):
            result = self._blocked_by_need(lab) or blocked_by_machine(lab)
            if result:
                self._waiting.remove(lab)
                self._end(result)

    def _blocked_by_need(self, lab: Lab) -> LabResult | None:
        for name in lab.needs:
            needed = self._results.get(name)
            if needed and needed.verdict == "skipped":
                reason = f"needs {name}, which was skipped: {needed.reason}"
                return LabResult(lab.name, "skipped", reason, capability=needed.capability)
            if needed and needed.verdict != "passed":
                how = {"timeout": "ran out of time", "dead-kernel": "lost its kernel"}.get(needed.verdict, "failed")
                return LabResult(lab.name, "skipped", f"needs {name}, which {how}")
        return None

    def _start_ready(self) -> None:
        planned = {lab.name for lab in self._prepared.labs}
        for lab in list(self._waiting):
            if len(self._running) >= self._prepared.jobs:
                return
            if any(name in planned and name not in self._results for name in lab.needs):
                continue
            if self._running and (lab.alone or any(running.lab.alone for running in self._running)):
                continue
            self._waiting.remove(lab)
            if not self._left_alone(lab):
                self._start(lab)

    def _left_alone(self, lab: Lab) -> bool:
        """Whether the lab passed before, and need not run again; remembers what goes into it in any case."""
        try:
            self._keys[lab.name] = self._history.key(lab, self._values(lab))
        except (LabError, OSError):  # a damaged ledger: the lab itself will say so
            return False
        if not self._prepared.only_changed:
            return False
        found = self._history.unchanged(lab, self._keys[lab.name], self._output)
        if found:
            result, self._origin[lab.name] = found
            self._end(result)
        return found is not None

    def _start(self, lab: Lab) -> None:
        try:
            self._running.append(RunningLab(lab, self._values(lab), self._setup))
            self._tell(f"{lab.name}: started")
        except OSError as error:
            self._end(LabResult(lab.name, "failed", f"it could not be started: {error}"))

    def _values(self, lab: Lab) -> dict[str, Any]:
        everywhere = {"profile": self._prepared.profile.name, "workspace": str(self._prepared.workspace.root)}
        return values_for(lab, {**everywhere, **self._prepared.parameters})

    def _end(self, result: LabResult) -> None:
        lab = next(lab for lab in self._prepared.labs if lab.name == result.name)
        if not result.unchanged and (last := self._history.last(lab)):
            result = replace(result, before_seconds=last.seconds)
        self._results[result.name] = result
        how = f"{result.verdict} after {duration(result.seconds)}" if result.seconds else result.verdict
        self._tell(f"{result.name}: {how}{', ' + result.reason if result.reason else ''}")
        report = self._write()
        if result.verdict == "passed" and not result.unchanged and result.name in self._keys:
            shown = next(found for found in report.labs if found.name == result.name)  # with its figure
            with suppress(OSError, LabError):  # then it only runs again next time
                self._history.remember(lab, shown, self._keys[lab.name], self._id, self._output)

    def _stop_all(self) -> None:
        self._tell(f"stopping: {self._stopped}")
        for running in self._running:
            running.ask_to_stop()
        for running in self._running:
            self._results[running.lab.name] = running.stop(f"stopped by {self._stopped}")
        for lab in self._waiting:
            self._results[lab.name] = LabResult(lab.name, "skipped", f"the run was stopped by {self._stopped}")
        self._running, self._waiting = [], []

    def _write(self) -> RunReport:
        """Writes the report as things stand; a full disk is told, and does not end the run."""
        report = self._report()
        try:
            write_report(report, self._output)
        except OSError as error:
            report = replace(report, complete=False, notes=(*report.notes, f"the report could not be written: {error}"))
            self._tell(report.notes[-1])
        return report

    def _report(self) -> RunReport:
        prepared, notes = self._prepared, []
        measured = []
        try:
            measured = run_headlines(prepared.workspace.ledger, self._id, self._origin)
        except LabError as error:
            notes.append(f"the ledger can't be read, so no figures are shown: {error}")
        labs = []
        for lab in prepared.labs:
            result = self._results.get(lab.name) or LabResult(lab.name, "skipped", UNFINISHED)
            labs.append(replace(result, figure=lab_figure(measured, lab.name, prepared.profile) or result.figure))
        return RunReport(
            profile=prepared.profile.name,
            seconds=round(time.monotonic() - self._began, 3),
            headline=scores(measured, prepared.profile),
            labs=tuple(labs),
            complete=not self._stopped and len(self._results) == len(prepared.labs),
            stopped=self._stopped,
            run=self._id,
            started=self._started,
            workspace=str(prepared.workspace.root),
            parameters=dict(prepared.parameters),
            machine=_machine_label(),
            jobs=prepared.jobs,
            notes=tuple(notes),
        )


def blocked_by_machine(lab: Lab) -> LabResult | None:
    """The lab as skipped, if a scheme without which it is pointless does not run on this machine."""
    if lab.schemes:
        from labkit.hardware import capability

        for scheme in lab.schemes:
            row = capability(scheme)
            if row.verdict == "no":
                reason = f"{scheme}: {row.reason}" + (f" ({row.alternative})" if row.alternative else "")
                return LabResult(lab.name, "skipped", reason, capability=True)
    return None


def _machine_label() -> str:
    from labkit.hardware import this_machine

    return str(this_machine().label)


def _run_id() -> str:
    return f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}-{secrets.token_hex(3)}"


def _environment(prepared: Prepared, run: str, scratch: Path) -> dict[str, str]:
    """What every lab of the run finds in its environment."""
    named = {name: absolute(os.environ[name]) for name in ("LABKIT_MODEL", "LABKIT_DATA") if os.environ.get(name)}
    if target := os.environ.get("LABKIT_TARGET"):
        named["LABKIT_TARGET"] = absolute_target(target)
    kernels = [str(write_kernel(scratch)), os.environ.get("JUPYTER_PATH", "")]
    return {
        **named,
        "LABKIT_RUN": run,
        "LABKIT_PROFILE": prepared.profile.name,
        "LABKIT_WORKSPACE": str(prepared.workspace.root),
        "JUPYTER_PATH": os.pathsep.join(filter(None, kernels)),
        "IPYTHONDIR": str(scratch / "ipython"),  # a learner's own start-up files must not change a run
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a warning about frozen modules in every log
    }
