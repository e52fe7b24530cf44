"""`labkit run`: a process a lab, judged and reported; how each lab last passed, for times and for `--only-changed`.

papermill executes the labs, with this interpreter as their kernel. The verdict comes from its exit code and the end
mark, a secret that only a lab's last cell writes: `sys.exit(0)` in a cell gives exit code 0 too, and a saved notebook
calls cells completed that never ran. The report is written again after every lab, so that a run killed at any moment
leaves one that is true: `complete` is false in it, and what had not ended says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from labkit.engine import LONGEST_SOCKET_FOLDER
from labkit.errors import LabError
from labkit.files import MANIFEST, file_sha256, write_atomically
from labkit.hardware import capability, stack_versions, this_machine
from labkit.ledger import Measurement, utc_now
from labkit.ops import duration, plain, report
from labkit.ops.notebooks import Lab, Plan, other_model, source
from labkit.ops.report import Failure, LabResult, RunReport, Skip, Verdict
from labkit.pace import cell_seconds, probe_seconds
from labkit.process import Child, log_tail

TICK_SECONDS = 0.2
KERNEL_START_SECONDS = 300  # a kernel on a busy machine; papermill's 60 have been too few
MOST_OUTPUT_BYTES = 100_000_000  # a loop that prints would fill the disk of all labs
OWN = "labkit-run-"  # how a run's own folder begins, among the system's temporary ones
REASONS = {  # by papermill's exit code, where the end mark does not say that all went well
    0: "it ended without reaching its last cell: the end mark is missing",
    138: "its kernel died",
    137: "it was killed from outside, perhaps because the machine ran out of memory",
}
STOPPING = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM", signal.SIGHUP: "SIGHUP"}
# What a runner sets, and a folder's name: no input of a lab.
NO_INPUTS = ("LABKIT_RUN", "LABKIT_WORKSPACE", "LABKIT_LAB")


def execute(plan: Plan, say: Callable[[str], None] = print) -> tuple[RunReport, Path]:
    """Runs the labs; returns the report and the folder that holds it, executed notebooks and logs.

    Stops in order on Ctrl-C, SIGTERM and SIGHUP: `RunReport.stopped` then names the signal.
    """
    output = plan.output or plan.workspace.new_run()
    output.mkdir(parents=True, exist_ok=True)
    with own_folder() as own, stop_signals() as received:
        return _Run(plan, output, own, received, say).go(), output


@contextmanager
def own_folder() -> Iterator[Path]:
    """A temporary folder of this run only, until its end. What killed runs left of theirs goes now.

    A run holds the lock in its folder as long as it lives: in another container its process has another number.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{OWN}*-*"):
        if not Path("/proc", left.name.split("-")[2]).exists():
            with suppress(OSError, Timeout), FileLock(left / "lock", timeout=0):
                shutil.rmtree(left, ignore_errors=True)
    own = tempfile.TemporaryDirectory(prefix=f"{OWN}{os.getpid()}-", ignore_cleanup_errors=True)
    with own as folder, FileLock(Path(folder, "lock")):
        yield Path(folder)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Within the block a signal that asks to stop only puts its number into the list, so that a run stops in order."""
    received: list[int] = []
    heeded = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]  # `nohup` ignores SIGHUP
    before = {number: signal.signal(number, lambda caught, _: received.append(caught)) for number in heeded}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class _Run:
    """The labs of one run: which wait, which run in a thread each, and how the others have ended so far.

    A lab starts as soon as those that it needs have passed; one that measures speed runs alone. own: a folder of this
    run only. received: signals.
    """

    plan: Plan
    output: Path
    own: Path
    received: list[int]
    say: Callable[[str], None]
    stopped: str = ""
    running: dict[Lab, Future[LabResult]] = field(default_factory=dict)
    ended: dict[str, LabResult] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)  # of what went into the labs that were started
    origins: dict[str, str] = field(default_factory=dict)  # the run that an unchanged lab's figures are from

    def __post_init__(self) -> None:
        self.began, self.started, self.waiting = time.monotonic(), utc_now(), list(self.plan.labs)
        stamp = f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}-{secrets.token_hex(3)}"
        self.id = stamp if self.plan.output else self.output.name

    def go(self) -> RunReport:
        """Runs the labs until all have ended, by themselves or by a signal."""
        self._write()
        with ThreadPoolExecutor(self.plan.jobs) as threads:
            try:
                while self.waiting or self.running:
                    self._heed_signals()
                    for lab in list(self.waiting):
                        self._start_or_skip(lab, threads)
                    time.sleep(TICK_SECONDS)
                    for lab in [lab for lab, future in self.running.items() if future.done()]:
                        self._end(lab, self.running.pop(lab).result())
                self._heed_signals()  # one that has just ended the last lab
            finally:
                self.received.append(signal.SIGTERM)  # after an error of our own no lab runs on
        self._write()  # before the pages: they take a moment, and the verdicts are known
        executed = [(lab, notebook) for lab in self.plan.labs if (notebook := self.ended[lab.name].notebook)]
        for name, page in report.pages_of_run(executed, self.output, self.say).items():
            self.ended[name] = replace(self.ended[name], page=page)
        return self._write()

    def _heed_signals(self) -> None:
        """After a signal nothing more is started; the threads see it, too, and end their labs."""
        if self.stopped or not self.received:
            return
        self.stopped = name = STOPPING[signal.Signals(self.received[0])]
        self.say(f"stopping: {name}")
        for lab in self.waiting:
            self.ended[lab.name] = LabResult(lab.name, "skipped", f"the run was stopped by {name}")
        self.waiting.clear()

    def _start_or_skip(self, lab: Lab, threads: ThreadPoolExecutor) -> None:
        """Skips a waiting lab that can't run any more; starts it if it is its turn, or takes its earlier result."""
        if skipped := self._blocked_by_need(lab) or blocked_by_machine(lab):
            self.waiting.remove(lab)
            self._end(lab, skipped)
            return
        pending = {each.name for each in self.plan.labs} - self.ended.keys()
        exclusive = self.running and (lab.alone or any(other.alone for other in self.running))
        if len(self.running) >= self.plan.jobs or pending.intersection(lab.needs) or exclusive:
            return
        self.waiting.remove(lab)
        values, found = self.plan.values_for(lab), None
        with suppress(LabError, OSError):  # a damaged ledger: the lab itself will say so
            self.keys[lab.name] = key = inputs_key(self.plan, lab, values)
            found = unchanged(self.plan, lab, key, self.output) if self.plan.only_changed else None
        if found:
            result, self.origins[lab.name] = found
            self._end(lab, result)
        else:
            self.running[lab] = threads.submit(self._execute, lab, values)
            self.say(f"{lab.name}: started")

    def _blocked_by_need(self, lab: Lab) -> LabResult | None:
        for needed in [self.ended[name] for name in lab.needs if name in self.ended]:
            if needed.verdict == "skipped":
                reason = f"needs {needed.name}, which was skipped: {needed.reason}"
                return LabResult(lab.name, "skipped", reason, capability=needed.capability)
            if needed.verdict != "passed":
                how = {"timeout": "ran out of time", "dead-kernel": "lost its kernel"}.get(needed.verdict, "failed")
                return LabResult(lab.name, "skipped", f"needs {needed.name}, which {how}")
        return None

    def _execute(self, lab: Lab, values: Mapping[str, Any]) -> LabResult:
        """One lab in a process tree of its own, until it ends or must be stopped; in a thread."""
        import yaml

        log, token = self.output / f"{lab.name}.log", secrets.token_hex(16)
        try:
            folder = Path(tempfile.mkdtemp(dir=self.own))  # also for what the lab leaves among temporary files
            executed, given, end, skips = (folder / name for name in ("lab.ipynb", "given.yaml", "end", "skips"))
            log.unlink(missing_ok=True)
            given.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
            # papermill formats paths
            paths = (str(path).replace("{", "{{").replace("}", "}}") for path in (lab.path, executed))
            command = [sys.executable, "-m", "papermill", *paths, "--parameters_file", str(given)]
            command += ["--kernel", "python3", "--language", "python", "--cwd", str(lab.path.parent)]
            command += ["--log-output", "--no-progress-bar", "--start-timeout", str(KERNEL_START_SECONDS)]
            marks = {"LABKIT_END_TOKEN": token, "LABKIT_END_FILE": str(end), "LABKIT_SKIPS_FILE": str(skips)}
            child = Child(command, log, self._environment(lab, folder) | marks, lab.path.parent)
        except OSError as error:
            return LabResult(lab.name, "failed", f"it could not be started: {error}")
        verdict, reason = self._watch(child, end, token)
        child.stop()
        failure = None if verdict == "passed" else _failure(executed, log, reason)
        if failure:
            first_line = failure.error.split("\n")[0]
            if verdict == "failed" and first_line.startswith("Unsupported: "):  # labkit's word for a row of the matrix
                verdict, first_line = "skipped", " ".join(failure.error.removeprefix("Unsupported: ").split())
            reason = ": ".join(filter(None, [failure.where, first_line]))
        lines = skips.read_text(encoding="utf-8").splitlines() if skips.exists() else []
        final = self.output / f"{lab.name}.ipynb"
        kept = _keep(executed, final)
        if not kept:
            older = "; an older copy was left as it was" * final.exists()
            lost = f"its executed copy could not be written whole{older}"
            verdict, reason = "failed" if verdict == "passed" else verdict, "; ".join(filter(None, [reason, lost]))
        shutil.rmtree(folder, ignore_errors=True)
        finished = child.finished()
        return LabResult(
            name=lab.name,
            verdict=verdict,
            reason=reason,
            seconds=round(finished.wall_seconds, 3),
            peak_bytes=finished.peak_bytes,
            skipped=tuple(Skip(**json.loads(line)) for line in lines),
            notebook=final.name if kept else None,
            log=log.name,
            capability=verdict == "skipped",
            failure=failure,
        )

    def _environment(self, lab: Lab, folder: Path) -> dict[str, str]:
        """What a lab finds in its environment; neither a `python3` kernel of another program nor start-up files of the
        user's change a run.
        """
        kernels = [f"{sys.prefix}/share/jupyter", os.environ.get("JUPYTER_PATH")]
        room_for_sockets = len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER
        return {
            "LABKIT_RUN": self.id,
            "LABKIT_LAB": lab.name,
            "LABKIT_PROFILE": self.plan.profile.name,
            "LABKIT_WORKSPACE": str(self.plan.workspace.root),
            "JUPYTER_PATH": os.pathsep.join(filter(None, kernels)),
            "IPYTHONDIR": str(self.own / "ipython"),
        } | ({"TMPDIR": str(folder)} if room_for_sockets else {})

    def _watch(self, child: Child, end: Path, token: str) -> tuple[Verdict, str]:
        """Waits until a lab has ended or must be stopped; how it ended, and why it did not pass."""
        deadline = time.monotonic() + self.plan.timeout_seconds
        while (code := child.poll()) is None:
            if self.received:
                return "failed", f"stopped by {STOPPING[signal.Signals(self.received[0])]}"
            if time.monotonic() > deadline:
                return "timeout", f"it did not end within {duration(self.plan.timeout_seconds)}"
            if child.log.stat().st_size > MOST_OUTPUT_BYTES:
                return "failed", f"it wrote more than {MOST_OUTPUT_BYTES // 10**6} MB of output"
            time.sleep(TICK_SECONDS)
        if code == 0 and end.is_file() and end.read_text(encoding="utf-8").strip() == token:
            return "passed", ""
        code = code if code >= 0 else 128 - code
        return "dead-kernel" if code == 138 else "failed", REASONS.get(code, f"it ended with exit code {code}")

    def _end(self, lab: Lab, result: LabResult) -> None:
        """Takes a lab's result: says it, writes the report, and remembers a lab that has passed."""
        if not result.unchanged:
            result = replace(result, before_seconds=last_passed(self.plan, lab).get("seconds", 0.0))
        self.ended[lab.name] = result
        how = f"{result.verdict} after {duration(result.seconds)}" if result.seconds else result.verdict
        self.say(f"{lab.name}: {how}{', ' + result.reason if result.reason else ''}")
        written = self._write()
        if result.verdict == "passed" and not result.unchanged and lab.name in self.keys:
            shown = next(found for found in written.labs if found.name == lab.name)  # with its figure
            about = {"key": self.keys[lab.name], "run": self.id, "output": str(self.output)}
            with suppress(OSError, LabError, ValueError, KeyError):  # then it only runs again next time
                remember(self.plan, lab, shown, **about)

    def _write(self) -> RunReport:
        """Writes the report as things stand; a full disk is reported, and does not end the run."""
        plan, machine = self.plan, this_machine()
        measured: list[Measurement] = []
        notes: tuple[str, ...] = ()
        try:
            measured = report.run_headlines(plan.workspace.ledger, self.id, self.origins)
        except LabError as error:
            notes = (f"the ledger can't be read, so no figures are shown: {error}",)
        unfinished = "it had not ended when this report was written"
        labs = [self.ended.get(lab.name) or LabResult(lab.name, "skipped", unfinished) for lab in plan.labs]
        figures = {lab.name: report.lab_figure(measured, lab.name, plan.profile) or lab.figure for lab in labs}
        written = RunReport(
            profile=plan.profile.name,
            seconds=round(time.monotonic() - self.began, 3),
            headline=report.scores(measured, plan.profile),
            labs=tuple(replace(lab, figure=figures[lab.name]) for lab in labs),
            complete=not self.stopped and len(self.ended) == len(labs),
            stopped=self.stopped,
            run=self.id,
            started=self.started,
            workspace=str(plan.workspace.root),
            parameters=dict(plan.parameters),
            machine=machine.label,
            level=machine.level,
            probe_seconds=probe_seconds(),
            jobs=plan.jobs,
            notes=notes,
        )
        try:
            report.write_report(written, self.output)
        except OSError as error:
            written = replace(written, complete=False, notes=(*notes, f"the report could not be written: {error}"))
            self.say(written.notes[-1])
        return written


def blocked_by_machine(lab: Lab) -> LabResult | None:
    """The lab as skipped, if a scheme without which it is pointless does not run on this machine."""
    for row in map(capability, lab.schemes):
        if row.verdict == "no":
            reason = f"{row.scheme}: {row.reason}" + (f" ({row.alternative})" if row.alternative else "")
            return LabResult(lab.name, "skipped", reason, capability=True)
    return None


def _failure(executed: Path, log: Path, reason: str) -> Failure:
    """The error of an executed copy; if it has none, `reason` and the cell that it was in, for display only."""
    where, tail = "", plain(log_tail(log, lines=40))
    try:
        cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError):
        cells = []
    mark = "papermill-error-cell-tag"  # of the cells that papermill adds to point at an error
    cells = [cell for cell in cells if mark not in cell["metadata"].get("tags", [])]
    for number, cell in enumerate(cells, 1):
        if cell["metadata"].get("papermill", {}).get("start_time"):
            lines = [line.strip() for line in source(cell).splitlines()]
            where = f"cell {number}"
            where += next((f" ({line[:80]})" for line in lines if line and not line.startswith(("#", "%"))), "")
        for out in cell.get("outputs", []):
            if out["output_type"] == "error" and (out["ename"] != "SystemExit" or out["evalue"] not in ("", "0")):
                trace = plain("\n".join(out["traceback"]))
                return Failure(where, plain(f"{out['ename']}: {out['evalue']}"), trace, tail)
    return Failure(where, reason, "", tail)


def _keep(executed: Path, final: Path) -> bool:
    """Puts an executed copy into the output, if it is whole and there is room: a full disk destroys no older one."""
    try:
        text = executed.read_text(encoding="utf-8")
        json.loads(text)
        write_atomically(final, text)
    except (OSError, ValueError):
        return False
    return True


# --- how labs last passed: a file a lab, so that two runs at once disturb nothing; `labkit.pace` reads the times ------


def last_passed(plan: Plan, lab: Lab) -> dict[str, Any]:
    """How a lab last passed in the workspace, whatever has changed since, as `remember` wrote it; empty if never."""
    try:
        return dict(json.loads((plan.workspace.passed / f"{lab.name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def remember(plan: Plan, lab: Lab, result: LabResult, **about: str) -> None:
    """Writes down that a lab has passed. about: the key of its start, the run, and its output folder."""
    cells = cell_seconds(Path(about["output"]) / f"{lab.name}.ipynb")
    more = {"made": _left_by(plan, lab), "ended": utc_now(), "profile": plan.profile.name, "cells": cells}
    passed = asdict(result) | about | more
    write_atomically(plan.workspace.passed / f"{lab.name}.json", json.dumps(passed, indent=1) + "\n")


def unchanged(plan: Plan, lab: Lab, key: str, output: Path) -> tuple[LabResult, str] | None:
    """The result and the run that it is from, its notebook copied into `output`, if inputs and results are the same."""
    last = last_passed(plan, lab)
    if last.get("key") != key or last["made"] != _left_by(plan, lab):
        return None
    name = f"{lab.name}.ipynb"
    if not Path(last["output"], name).is_file():
        return None
    shutil.copyfile(Path(last["output"], name), output / name)
    reason = f"unchanged since {last['ended'][:16].replace('T', ' ')}"
    skipped = tuple(Skip(**skip) for skip in last["skipped"])
    found = LabResult(lab.name, "passed", reason, skipped=skipped, notebook=name, figure=last["figure"], unchanged=True)
    return replace(found, before_seconds=last["seconds"]), last["run"]


def inputs_key(plan: Plan, lab: Lab, values: Mapping[str, Any]) -> str:
    """The digest of everything that goes into a lab that is run with these parameters."""
    raw = json.loads(lab.path.read_text(encoding="utf-8"))
    variables = {n: v for n, v in sorted(os.environ.items()) if n.startswith("LABKIT_") and n not in NO_INPUTS}
    places = (str(Path(__file__).parents[1]), plan.parameters.get("model", ""), plan.parameters.get("data", ""))
    facts = {
        "cells": [[c["cell_type"], c["source"], c.get("metadata", {}).get("tags", [])] for c in raw["cells"]],
        "metadata": raw.get("metadata", {}).get("labkit", {}),
        "values": dict(values),
        "environment": variables,
        "profile": plan.profile.name,
        "versions": stack_versions(),
        "machine": this_machine().label,
        "files": [_state(place) for place in places],
        "needs": {other.name: _left_by(plan, other) for other in plan.known if other.name in lab.needs},
    }
    return _digest(json.dumps(facts, sort_keys=True, default=str))


def _left_by(plan: Plan, lab: Lab) -> list[str]:
    """What a lab left: its checkpoints' manifests, and when it last wrote into the ledger."""
    other = other_model(plan.profile, plan.parameters.get("model", ""))
    paths = [plan.workspace.checkpoint(variant, other) / MANIFEST for variant in lab.makes]
    times = [line.time for line in plan.workspace.ledger.read() if line.lab == lab.name]
    return [*(file_sha256(path) if path.is_file() else "" for path in paths), max(times, default="")]


def _state(place: str) -> str:
    """The files of a local folder by name, size and time; a name that is none (a hub's, an address) says it all."""
    if not place or not Path(place).is_dir():
        return place
    paths = [path for path in sorted(Path(place).rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    return _digest("\n".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in paths))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
