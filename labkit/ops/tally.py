"""How the labs of a run have ended so far: reported, and remembered for the next run.

The report is written again after every lab, so that a run killed at any moment leaves one that is true: `complete` is
false in it, and what had not ended says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.ledger import utc_now
from labkit.ops.headline import lab_figure, run_headlines, scores
from labkit.ops.history import History
from labkit.ops.notebooks import Lab
from labkit.ops.pages import pages_of_run
from labkit.ops.prepare import Prepared
from labkit.ops.records import LabResult, RunReport
from labkit.ops.report import write_report
from labkit.ops.text import duration
from labkit.pace import probe_seconds

UNFINISHED = "it had not ended when this report was written"


class Tally:
    """The results of one run; `ended` has those that are known, by lab."""

    def __init__(self, prepared: Prepared, output: Path, run: str, tell: Callable[[str], None]) -> None:
        self._prepared, self._output, self._id, self._tell = prepared, output, run, tell
        self._began, self._started = time.monotonic(), utc_now()
        self._stopped = ""
        self._history = History(prepared)
        self._keys: dict[str, str] = {}  # of the labs that were started, at their start
        self._origin: dict[str, str] = {}  # the run that an unchanged lab's figures are from
        self.ended: dict[str, LabResult] = {}

    def left_alone(self, lab: Lab, values: Mapping[str, Any]) -> bool:
        """Whether the lab passed before, and need not run again; remembers what goes into it in any case."""
        try:
            self._keys[lab.name] = self._history.key(lab, values)
        except (LabError, OSError):  # a damaged ledger: the lab itself will say so
            return False
        if not self._prepared.only_changed:
            return False
        found = self._history.unchanged(lab, self._keys[lab.name], self._output)
        if found:
            result, self._origin[lab.name] = found
            self.end(result)
        return found is not None

    def end(self, result: LabResult) -> None:
        """Takes a lab's result: tells it, writes the report, and remembers a lab that has passed."""
        lab = next(lab for lab in self._prepared.labs if lab.name == result.name)
        if not result.unchanged and (last := self._history.last(lab)):
            result = replace(result, before_seconds=last.seconds)
        self.ended[result.name] = result
        how = f"{result.verdict} after {duration(result.seconds)}" if result.seconds else result.verdict
        self._tell(f"{result.name}: {how}{', ' + result.reason if result.reason else ''}")
        report = self.write()
        if result.verdict == "passed" and not result.unchanged and result.name in self._keys:
            shown = next(found for found in report.labs if found.name == result.name)  # with its figure
            with suppress(OSError, LabError):  # then it only runs again next time
                self._history.remember(lab, shown, self._keys[lab.name], self._id, self._output)

    def stop(self, signal: str, results: Sequence[LabResult]) -> None:
        """Takes the results of the labs that a signal ended, or kept from being started."""
        self._stopped = signal
        self.ended.update({result.name: result for result in results})

    def close(self) -> RunReport:
        """Writes the executed labs as pages, and the report of the whole run, which leads to them."""
        self.write()  # before the pages: they take a moment, and the verdicts are known
        executed = [(lab, self.ended[lab.name].notebook) for lab in self._prepared.labs if lab.name in self.ended]
        for name, page in pages_of_run(executed, self._output, self._tell).items():
            self.ended[name] = replace(self.ended[name], page=page)
        return self.write()

    def write(self) -> RunReport:
        """Writes the report as things stand; a full disk is told, and does not end the run."""
        report = self._report()
        try:
            write_report(report, self._output)
        except OSError as error:
            report = replace(report, complete=False, notes=(*report.notes, f"the report could not be written: {error}"))
            self._tell(report.notes[-1])
        return report

    def _report(self) -> RunReport:
        from labkit.hardware import this_machine

        prepared, notes = self._prepared, []
        measured = []
        try:
            measured = run_headlines(prepared.workspace.ledger, self._id, self._origin)
        except LabError as error:
            notes.append(f"the ledger can't be read, so no figures are shown: {error}")
        labs = []
        for lab in prepared.labs:
            result = self.ended.get(lab.name) or LabResult(lab.name, "skipped", UNFINISHED)
            labs.append(replace(result, figure=lab_figure(measured, lab.name, prepared.profile) or result.figure))
        return RunReport(
            profile=prepared.profile.name,
            seconds=round(time.monotonic() - self._began, 3),
            headline=scores(measured, prepared.profile),
            labs=tuple(labs),
            complete=not self._stopped and len(self.ended) == len(prepared.labs),
            stopped=self._stopped,
            run=self._id,
            started=self._started,
            workspace=str(prepared.workspace.root),
            parameters=dict(prepared.parameters),
            machine=str(this_machine().label),
            level=this_machine().level,
            probe_seconds=probe_seconds(),
            jobs=prepared.jobs,
            notes=tuple(notes),
        )
