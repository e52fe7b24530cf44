"""Runs labs: each in its own process tree, as soon as the labs that it needs have passed.

Where several run at once, one that measures speed starts first, as it takes longest, and while it measures the others
stand still. One at a time they run in their order.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from labkit.engine import Lender
from labkit.ops.labprocess import RunningLab, Setup, write_kernel
from labkit.ops.notebooks import Lab
from labkit.ops.plan import values_for
from labkit.ops.prepare import Prepared, absolute, absolute_target
from labkit.ops.records import LabResult, RunReport
from labkit.ops.signals import StopSignals
from labkit.ops.tally import Tally
from labkit.workspace import STAGING

TICK_SECONDS = 0.2


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
    """Which labs of a run wait, which run, and what decides when each may start."""

    def __init__(self, prepared: Prepared, output: Path, scratch: Path, tell: Callable[[str], None]) -> None:
        self._prepared, self._tell = prepared, tell
        self._waiting = list(prepared.labs)
        self._blocked = {lab.name: blocked_by_machine(lab) for lab in prepared.labs}
        self._running: list[RunningLab] = []
        self._measuring: RunningLab | None = None
        run = output.name if prepared.output is None else _run_id()
        self._tally = Tally(prepared, output, run, tell)
        self._lender = Lender()
        env = _environment(prepared, run, scratch)
        self._setup = Setup(output, scratch, env, prepared.timeout_seconds, self._lender.launch)

    def go(self, signals: StopSignals) -> RunReport:
        try:
            return self._go(signals)
        finally:
            self._lender.stop()

    def _go(self, signals: StopSignals) -> RunReport:
        self._tally.write()
        while (self._waiting or self._running) and not signals.received:
            self._skip_impossible()
            if self._measuring is None:  # a lab that starts is no silence
                self._start_ready()
            time.sleep(TICK_SECONDS)
            for running in list(self._running):
                result = running.poll()
                if result:
                    self._running.remove(running)
                    self._tally.end(result)
            self._arrange()
            if self._waiting and self._measuring is None:
                self._lender.listen()
        if signals.received and (self._waiting or self._running):
            self._stop_all(signals.name)
        return self._tally.close()

    def _skip_impossible(self) -> None:
        """Skips every waiting lab that can't run any more: a needed lab did not pass, or this machine can't do it."""
        for lab in list(self._waiting):
            result = self._blocked_by_need(lab) or self._blocked[lab.name]
            if result:
                self._waiting.remove(lab)
                self._tally.end(result)

    def _blocked_by_need(self, lab: Lab) -> LabResult | None:
        for name in lab.needs:
            needed = self._tally.ended.get(name)
            if needed and needed.verdict == "skipped":
                reason = f"needs {name}, which was skipped: {needed.reason}"
                return LabResult(lab.name, "skipped", reason, capability=needed.capability)
            if needed and needed.verdict != "passed":
                how = {"timeout": "ran out of time", "dead-kernel": "lost its kernel"}.get(needed.verdict, "failed")
                return LabResult(lab.name, "skipped", f"needs {name}, which {how}")
        return None

    def _start_ready(self) -> None:
        planned = {lab.name for lab in self._prepared.labs}
        for lab in sorted(self._waiting, key=lambda lab: self._prepared.jobs > 1 and not lab.alone):
            if len(self._running) >= self._prepared.jobs:
                return
            if any(name in planned and name not in self._tally.ended for name in lab.needs):
                continue
            if not self._fits(lab):
                continue
            self._waiting.remove(lab)
            values = self._values(lab)
            if not self._tally.left_alone(lab, values):
                self._start(lab, values)

    def _fits(self, lab: Lab) -> bool:
        """Whether a lab may run beside those that run now; two that measure speed never do."""
        return not (lab.alone and any(running.lab.alone for running in self._running))

    def _arrange(self) -> None:
        """While a lab measures speed, the others stand still; two that want to take turns."""
        asking = [running for running in self._running if running.asks_for_quiet]
        if self._measuring not in asking:
            self._measuring = asking[0] if asking else None
        for running in self._running:
            running.stand(self._measuring not in (None, running))
        if self._measuring and self._lender.settled:
            self._measuring.grant_quiet()

    def _start(self, lab: Lab, values: dict[str, Any]) -> None:
        try:
            self._running.append(RunningLab(lab, values, self._setup))
            self._tell(f"{lab.name}: started")
        except OSError as error:
            self._tally.end(LabResult(lab.name, "failed", f"it could not be started: {error}"))

    def _values(self, lab: Lab) -> dict[str, Any]:
        everywhere = {"profile": self._prepared.profile.name, "workspace": str(self._prepared.workspace.root)}
        return values_for(lab, {**everywhere, **self._prepared.parameters})

    def _stop_all(self, signal: str) -> None:
        self._tell(f"stopping: {signal}")
        for running in self._running:
            running.ask_to_stop()
        stopped = [running.stop(f"stopped by {signal}") for running in self._running]
        stopped += [LabResult(lab.name, "skipped", f"the run was stopped by {signal}") for lab in self._waiting]
        self._tally.stop(signal, stopped)
        self._running, self._waiting = [], []


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
        "LABKIT_JOBS": str(prepared.jobs),
        "JUPYTER_PATH": os.pathsep.join(filter(None, kernels)),
        "IPYTHONDIR": str(scratch / "ipython"),  # a learner's own start-up files must not change a run
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a warning about frozen modules in every log
    }
