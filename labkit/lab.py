"""`open_lab()` and `Lab`: what a notebook holds in its hand.

A `Lab` holds no results, only where they are: checkpoints in the workspace, measurements in the ledger. What it hides
is housekeeping (names, paths, atomic saving, memory, records); recipes, evaluation calls and scripts stand in the
notebooks.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import psutil

from labkit import behaviour, checkpoint, checks, data, explorers, hardware, memory, notebook, pace, quantize, tiny
from labkit import evaluate as evaluation
from labkit.card import picture, scorecard
from labkit.compare import Recovery, compare_evaluations
from labkit.data import CalibrationSet
from labkit.engine import end_fork_server, is_helper, model_length, number_type, run, run_source
from labkit.errors import CheckFailed, DataError, LabError, MissingResult, UsageError
from labkit.evaluate import Evaluation, Request
from labkit.files import publishing, read_manifest
from labkit.ledger import Measurement, Purpose
from labkit.profiles import BASELINE, EMBEDDED, SPEED, TINY, Parameters, Profile, Task, get_profile
from labkit.quantize import Job
from labkit.store import Context, Workspace, find_workspace
from labkit.transfer import download_to_cache, is_address, parse


def open_lab(name: str, **parameters: Any) -> Lab:
    """Opens a lab: `name` is the notebook's stem, `parameters` are those of its parameters cell.

    Raises UsageError for an unknown or mistyped parameter, also one that papermill injected, before anything runs.
    """
    notebook.refuse_unknown_parameters(parameters)
    notebook.quiet_libraries()
    known = {f.name for f in fields(Parameters)}
    if unknown := parameters.keys() - known:
        raise UsageError(f"open_lab() knows no {', '.join(sorted(unknown))}", fix=f"use: {', '.join(sorted(known))}")
    asked = Parameters(**parameters).resolved()
    workspace = Workspace(find_workspace(asked.workspace))
    workspace.require_writable()
    profile = get_profile(asked.profile, asked.dtype)
    profile = replace(profile, engine=replace(profile.engine, dtype=number_type(profile.engine)))  # "auto" no more
    if asked.limit:
        profile = profile.with_limit(asked.limit)
    if is_address(asked.data):
        asked = replace(asked, data=str(download_to_cache(parse(asked.data), workspace.data)))
    model = asked.model or profile.model
    of_hub = model.startswith("hub:") or asked.target.startswith("hub:")
    offline = not of_hub and (not profile.needs_network or bool(asked.data))
    if offline:
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    run_id, logs = os.environ.get("LABKIT_RUN", ""), workspace.root / "logs" / name
    context = Context(workspace, profile, asked.data, offline, logs, lab=name, run=run_id)
    print(f"Lab {name} · profile {profile.name} · model {model} · workspace {workspace.root}")
    print(f"This machine: {hardware.this_machine().label}")
    pace.say_before_long_cells(workspace, name, profile.name)
    return Lab(name, context, asked)


@dataclass
class Lab:
    """One notebook's view of its profile, workspace and model."""

    name: str
    context: Context
    parameters: Parameters
    guesses: dict[str, float] = field(default_factory=dict)

    @property
    def profile(self) -> Profile:
        return self.context.profile

    @property
    def workspace(self) -> Workspace:
        return self.context.workspace

    # --- what the lab says ----------------------------------------------------------------------------------------

    show = staticmethod(notebook.show)
    progress = staticmethod(notebook.bar)

    def check(self, ok: bool, looked_at: str, found: str, fix: str) -> None:
        """Prints a judgement of what holds for any model; one that is not ok stops the lab."""
        said = f"Looked at {looked_at}: {found}."
        if not ok:
            raise CheckFailed(said, fix=fix)
        self.show(f"✔ {said}")

    def expect(self, ok: bool, looked_at: str, found: str, fix: str) -> None:
        """The same for what holds of labkit's own model, with all rows of its profile; elsewhere it is only printed."""
        if self.own_model and not self.parameters.limit:
            self.check(ok, looked_at, found, fix)
        else:
            self.show(f"observed: {looked_at}: {found}.")

    def verify(self, job: Job, scheme: str) -> None:
        """Judges what a quantize made, before anything uses it: scheme ("" if nothing is quantized), finite values,
        GPTQ where it was asked for, the same when it is loaded again, accepted by vLLM, and the memory back.
        """
        findings = [finding for finding in checkpoint.lint(job.final) if not finding.of_machine]
        for check in checks.quantized(job, checkpoint.inspect(job.final, values=True), findings, scheme):
            self.check(*check)

    @staticmethod
    def exercise(answer: Any, right: float | bool | str | None, hint: str, tolerance: float = 0.01) -> None:
        """Prints how an exercise stands: not yet, or right. Raises CheckFailed with the hint for a wrong answer.

        right: a number, met within the relative `tolerance`; a name, True or False; or None where the samples of this
        run can't tell, which any choice survives.
        """
        if answer is ...:
            print("Not yet: replace the `...` in the cell above with your answer, then run both cells again.")
            return
        said = repr(answer)
        if right is None or isinstance(right, bool | str):
            ok = isinstance(answer, bool | str) if right is None else (type(answer), answer) == (type(right), right)
        else:
            try:
                ok, said = abs(float(answer) - right) <= tolerance * abs(right), f"{float(answer):,.6g}"
            except (TypeError, ValueError):
                ok, said = False, f"{answer!r} is not a number"
        if not ok:
            raise CheckFailed(f"Not quite: {said}.", fix=hint)
        print(
            f"✔ {said} " + ("is right." if right is not None else "stands: so few samples can't tell which is right.")
        )

    def predict(self, about: str, guess: float, question: str) -> None:
        """Asks for a guess, to stand beside the measurement; `guess` is taken if the learner gives none."""
        self.guesses[about] = float(guess)
        if explorers.present():
            explorers.ask(question, guess, lambda answer: self.guesses.update({about: answer}))
        else:
            print(f"{question}\nThe guess: {guess:g}.")

    def outcome(self, about: str, measured: float, form: str = "{:.3g}") -> None:
        """The guess beside what was measured; both go into the ledger."""
        guess = self.guesses.get(about)
        measured += 0.0  # no "-0.000"
        if guess is not None:
            found = {"measured": measured if math.isfinite(measured) else str(measured)}  # JSON knows no infinity
            self.record("prediction", about, guess, variant=BASELINE, purpose="sweep", settings=found)
        said = "you made no guess" if guess is None else f"you guessed {form.format(guess)}"
        print(f"{about}: measured {form.format(measured)}; {said}.")

    def scorecard(self) -> None:
        """Every variant of this workspace in a table and, of those that were evaluated, in a picture."""
        rows = scorecard(self.workspace, self.profile.main_task.name)
        self.show([row.cells() for row in rows])
        if drawn := picture(rows):
            self.show(drawn)

    def skip(self, part: str, reason: str) -> None:
        """Says that this machine can't do a part of the lab; it shows in the report with the reason, not as passed."""
        print(f"Skipped: {part}. {reason}")
        if path := os.environ.get("LABKIT_SKIPS_FILE"):
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"part": part, "reason": reason}) + "\n")

    def end(self) -> None:
        """The end mark: frees scratch, says what this lab still holds. A run passed only if this was reached."""
        # Copies of a large model would fill the disk lab by lab.
        shutil.rmtree(self.workspace.root / "cache" / self.name, ignore_errors=True)
        end_fork_server()
        children = psutil.Process().children(recursive=True)
        below = [p for p in children if p.status() != psutil.STATUS_ZOMBIE and not is_helper(p.pid)]
        kernel = f"This kernel holds {memory.process_bytes() / 1e6:,.0f} MB"
        print(f"End of {self.name}. {kernel}; {len(below)} engines run.")
        print("Stop the kernel (Kernel > Shut Down) to give that back, and your workbench when you leave.")
        if below:
            raise LabError(f"{len(below)} processes of this lab still run", fix="restart the kernel; it ends them")
        token, path = os.environ.get("LABKIT_END_TOKEN"), os.environ.get("LABKIT_END_FILE")
        if token and path:
            Path(path).write_text(token, encoding="utf-8")

    # --- models ---------------------------------------------------------------------------------------------------

    @property
    def model_source(self) -> str:
        """The model as it was named: `tiny`, a folder, a hub id or an address."""
        return self.parameters.model or self.profile.model

    @property
    def own_model(self) -> bool:
        """Whether this is one of labkit's own models, whose story is known: only then do expectations stop a lab."""
        return self.model_source in (EMBEDDED, SPEED)

    @property
    def model_name(self) -> str:
        """The model's short name, as the ledger and the checkpoints' folders spell it."""
        return self.model_source if self.own_model else checkpoint.short_name(self.model_source)

    @property
    def device(self) -> str:
        """Where a model of this lab runs inside the notebook: `cuda` if this machine has it, else `cpu`."""
        return "cuda" if hardware.engine_build() == "cuda" and hardware.this_machine().gpus else "cpu"

    @cached_property
    def base(self) -> Path:
        """The folder of the unquantized model; one of labkit's own is written on first use."""
        if not self.own_model:
            local = Path(self.model_source).expanduser().is_dir()
            with nullcontext() if local else notebook.waiting(f"downloading {self.model_source}"):
                cache = self.workspace.models
                return checkpoint.resolve_model(self.model_source, offline=self.context.offline, cache=cache)
        final = self._place(BASELINE)
        with self.workspace.exclusive(final.name):  # labs that run side by side all want it
            if not final.exists():
                embedded = self.model_source == EMBEDDED
                facts = {"outlier_factor": tiny.OUTLIER_FACTOR} if embedded else {"seed": tiny.SPEED_SEED}
                with publishing(final, base=self.model_source, variant=BASELINE, **facts) as stage:
                    (tiny.materialize if embedded else tiny.materialize_speed_model)(stage)
        return final

    def in_shards(self, parts: int) -> Path:
        """The base model in several files: itself if it has more than one, else a scratch copy in about `parts`."""
        files = checkpoint.weight_files(self.base)
        if len(files) > 1:
            return self.base
        folder = self.scratch("shards") / self.model_name
        with publishing(folder, base=self.model_source, variant=BASELINE) as stage:
            model = checkpoint.load(self.base)
            model.save_pretrained(stage, max_shard_size=-(-files[0].stat().st_size // parts))
            checkpoint.load_tokenizer(self.base).save_pretrained(stage)
        return folder

    def with_outliers(self, k: float) -> Self:
        """The same lab on the embedded model and its rows, planted outliers k times as large as their channel was."""
        folder = self.workspace.root / "cache" / "planted" / f"{EMBEDDED}-k{k:.0f}"
        if not folder.exists():
            with publishing(folder, base=EMBEDDED, variant=BASELINE, outlier_factor=k) as stage:
                tiny.materialize(stage, k)
        rows = replace(TINY.calibration, rows=min(self.profile.calibration.rows, TINY.calibration.rows))
        context = replace(self.context, profile=replace(self.profile, calibration=rows), data="")
        return replace(self, context=context, parameters=replace(self.parameters, model=str(folder)))

    def on_speed_model(self) -> Self:
        """The same lab on the model that the profile measures speed with; on itself if that is no other one."""
        other = self.profile.serving.model
        if self.parameters.model or not other:
            return self
        return replace(self, parameters=replace(self.parameters, model=other))

    def checkpoint(self, variant: str, made_by: str = "") -> Path:
        """The folder of a variant of this lab's model, whether or not it is there yet; of "bf16" the base model's.

        made_by: the lab that makes it. Raises MissingResult if it is not there, or is another model's.
        """
        folder = self.base if variant == BASELINE else self._place(variant)
        if not made_by or variant == BASELINE or self.has(variant):
            return folder
        fix = f"run it first: labkit run {made_by}"
        if not folder.exists():
            raise MissingResult(f"{folder} is not there", why=f"this lab reads what lab {made_by} makes", fix=fix)
        raise MissingResult(
            f"{folder} was made from {read_manifest(folder).get('base')}, not from {self.model_name}",
            why="two models would be compared as if they were one",
            fix=f"give each profile a workspace of its own (LABKIT_WORKSPACE), then {fix}",
        )

    def has(self, variant: str) -> bool:
        """Whether this workspace has a variant, made from this lab's model."""
        folder = self._place(variant)
        return folder.exists() and read_manifest(folder).get("base") == self.model_name

    def _place(self, variant: str) -> Path:
        own = self.model_source == self.profile.model
        return self.workspace.checkpoint(variant, "" if own else self.model_name)

    def scratch(self, name: str) -> Path:
        """A place for a folder that only this lab needs, until its end; what an earlier run left there is removed."""
        folder = self.workspace.root / "cache" / self.name / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    release = staticmethod(memory.release)

    def load(self, folder: Path) -> Any:
        """The model of a checkpoint, loaded strictly, on this lab's device, ready to read."""
        return checkpoint.load(folder).to(self.device).eval()

    # --- rows -----------------------------------------------------------------------------------------------------

    def calibration_rows(self, rows: int = 0, *, random: bool = False) -> CalibrationSet:
        """The profile's calibration set, or `rows` rows of it; warns of rows that a task is scored on.

        random: as many rows of random tokens, the wrong domain, to see what it costs.
        """
        rows, longest = rows or self.profile.calibration.rows, self.profile.calibration.max_length
        if random:
            return data.random_text_set(checkpoint.load_tokenizer(self.base), rows, longest, self.profile.seed)
        chosen = self._rows(rows)
        for task in self.profile.tasks if self.context.data else ():
            self._warn_of_repeats(chosen, task)
        return chosen

    def held_out_rows(self, rows: int = 0) -> list[list[int]]:
        """Token rows of the calibration's source that no quantize of this lab has seen, the first 256 tokens of each.

        0 rows: 128 for the embedded model and 16 for others, because what is computed of them may be large: a
        distribution over 152,000 tokens takes 0.6 MB.
        """
        rows = rows or (128 if self.model_source == EMBEDDED else 16)
        return [row[:256] for row in self._rows(self.profile.calibration.rows + rows).input_ids[-rows:]]

    def questions(self, count: int) -> list[str]:
        """A few questions to ask: unseen word problems, in the form that the embedded model was trained on."""
        return [tiny.corpus.prompt(problem.question) for problem in tiny.corpus.problems("test", count, seed=1)]

    def _rows(self, rows: int) -> CalibrationSet:
        spec, tokenizer = self.profile.calibration, checkpoint.load_tokenizer(self.base)
        return data.calibration_set(spec, tokenizer, data=self.context.data, rows=rows, seed=self.profile.seed)

    def _warn_of_repeats(self, chosen: CalibrationSet, task: Task) -> None:
        """Of local files only: a hub data set would have to be downloaded for it."""
        scored = task.data_files.get("test") or next(iter(task.data_files.values()), ())  # IFEval has a `train` only
        try:
            path = data.find_data_file(self.context.data, scored, f"test rows of {task.name}")
            found = data.repeated(chosen, data.read_rows(path))
        except DataError:  # an evaluation will say so, if there is one
            return
        if found:
            self.show(
                f"Warning: of {path.name}, {len(found)} of the questions stand in the {len(chosen.input_ids)} "
                f"calibration rows of {chosen.source}, such as {found[0][:60]!r}. A score of {task.name} on them says "
                "too much: calibrate on other rows."
            )

    # --- work -----------------------------------------------------------------------------------------------------

    @contextmanager
    def quantizing(self, variant: str, purpose: Purpose = "headline", *, scratch: bool = False) -> Iterator[Job]:
        """Measures what a quantize inside the block takes, and records it once the result is saved.

        scratch: the checkpoint, `job.final`, is for this lab only, and gone at its end.
        """
        final, log = self.scratch(variant) if scratch else self.checkpoint(variant), self.context.log(variant)
        print(f"Quantizing {self.model_name} to {variant} (library messages: {log})")
        with quantize.quantizing(
            final, self.base, log=log, base_name=self.model_name, base_source=self.model_source, variant=variant
        ) as job:
            yield job
        for metric, value, unit in (("seconds", job.wall_seconds, "s"), ("peak_bytes", job.peak_bytes, "bytes")):
            self.record("quantize", metric, value, variant=variant, unit=unit, purpose=purpose)
        for name, folder in ((BASELINE, self.base), (variant, final)):
            size = checkpoint.inspect(folder).total_bytes
            self.record("size", "bytes", size, variant=name, unit="bytes", purpose=purpose)
        print(f"Quantized and saved in {job.wall_seconds:.1f} s to {final}")

    def evaluate(self, requests: Sequence[Request]) -> list[Evaluation]:
        """Runs the evaluations in an engine's process, checks that each scored rows and gave a number, and puts every
        figure, with its settings, into the ledger.
        """
        with notebook.bar(len(requests), "evaluating", "task") as show:
            done = evaluation.evaluate(requests, self.context, log=self.context.log("evaluation"), on_tick=show)
        self.check(*checks.scored(done))
        self.workspace.ledger.append(self.scored_by(e) for e in done)
        return done

    def compare(
        self,
        baseline: Evaluation,
        candidate: Evaluation,
        first: int | None = None,
        differ: Set[str] = frozenset(),
    ) -> Recovery:
        """Recovery of a candidate against the baseline on the same rows, or on the first; `differ`: what may differ."""
        return compare_evaluations(baseline, candidate, seed=self.profile.seed, first=first, differ=differ)

    def divergences_by_row(self, folders: Iterable[Path], rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """How far each checkpoint's next-token distributions are from the baseline's on each row, in nats a token."""
        with notebook.waiting("divergences"):
            return behaviour.divergences_by_row(self.base, list(folders), rows, self.device)

    def divergences(self, folders: Iterable[Path], rows: Sequence[Sequence[int]]) -> list[float]:
        """The same over all tokens of the rows."""
        with notebook.waiting("divergences"):
            return behaviour.divergences(self.base, list(folders), rows, self.device)

    def run_script(self, script: str, folder: Path, questions: Sequence[str] = (), **more: Any) -> Any:
        """Runs a script in an engine's process; it reads `job`, with `more` in it, and leaves a result in `answer`."""
        engine = self.profile.engine
        job = {
            "source": script,
            "model": str(folder),
            "questions": list(questions),
            "max_model_len": model_length(folder, engine),
            "dtype": number_type(engine, folder),
            "enforce_eager": engine.enforce_eager,
            "tensor_parallel_size": engine.tensor_parallel,
            **more,
        }
        with notebook.waiting(f"an engine with {folder.name}"):
            log = self.context.log("script")
            return run(run_source, job, self.context, log=log, deadline_seconds=1800)

    # --- the ledger -----------------------------------------------------------------------------------------------

    def measurement(self, kind: Any, metric: str, value: float, *, variant: str, **more: Any) -> Measurement:
        """A ledger line of this lab, this model and this machine."""
        return Measurement(
            kind,
            metric,
            float(value),
            variant,
            self.model_name,
            machine=hardware.this_machine().label,
            versions=hardware.stack_versions(),
            lab=self.context.lab,
            run=self.context.run,
            **more,
        )

    def record(self, kind: Any, metric: str, value: float, *, variant: str, **more: Any) -> None:
        """Appends one measurement to the ledger."""
        self.workspace.ledger.append([self.measurement(kind, metric, value, variant=variant, **more)])

    def scored_by(self, e: Evaluation) -> Measurement:
        """An evaluation as a ledger line."""
        task = e.request.task
        return self.measurement(
            task.kind,
            task.metric,
            e.value,
            variant=e.request.variant,
            task=task.name,
            backend=e.request.backend,
            stderr=e.stderr,
            n=e.n,
            unit="share" if task.kind == "accuracy" else "perplexity",
            settings=e.settings,
            purpose=e.request.purpose,
        )
