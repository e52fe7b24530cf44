"""What a lab does: finds and loads models, quantizes, evaluates, compares; every figure goes into the ledger.

A `Lab` holds no results, only where they are: checkpoints in the workspace, measurements in the ledger. What it hides
is housekeeping (names, paths, atomic saving, memory, records); recipes, evaluation calls and scripts stand in the
notebooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import calibration, checkpoint, divergence, evaluation, hardware, quantize, tiny
from labkit.compare import Recovery, compare_evaluations
from labkit.engine import model_length, run_script
from labkit.errors import MissingResult
from labkit.lab.binding import BASELINE
from labkit.lab.notebook import evaluation_bar
from labkit.lab.serving import Serving
from labkit.profiles import EMBEDDED
from labkit.tiny import corpus
from labkit.workspace import publishing, read_manifest

if TYPE_CHECKING:
    from labkit.calibration import CalibrationSet
    from labkit.evaluation import Evaluation, Request
    from labkit.ledger import Measurement, Purpose
    from labkit.memory import Released
    from labkit.quantize import Job

SCRIPT_SECONDS = 1800.0


class Lab(Serving):
    """One notebook's view of its profile and workspace."""

    @cached_property
    def base(self) -> Path:
        """The folder of the unquantized model; one of labkit's own is written on first use."""
        if not self.own_model:
            return checkpoint.resolve_model(self.model_source, offline=self.offline)
        final = self.checkpoint(BASELINE)
        if not final.exists():
            facts = {"outlier_factor": tiny.OUTLIER_FACTOR} if self.embedded else {"seed": tiny.SPEED_SEED}
            with publishing(final, base=self.model_source, variant=BASELINE, **facts) as stage:
                (tiny.materialize if self.embedded else tiny.materialize_speed_model)(stage)
        return final

    def with_outliers(self, k: float) -> Lab:
        """The same lab on the embedded model with its planted outliers k times as large as the channel was."""
        folder = self.workspace.root / "cache" / "planted" / f"{EMBEDDED}-k{k:.0f}"
        if not folder.exists():
            with publishing(folder, base=EMBEDDED, variant=BASELINE, outlier_factor=k) as stage:
                tiny.materialize(stage, k)
        return replace(self, parameters=replace(self.parameters, model=str(folder)))

    def on_speed_model(self) -> Lab:
        """The same lab on the model that the profile measures speed with; on itself if that is no other one."""
        other = self.profile.serving.model
        if self.parameters.model or not other:
            return self
        return replace(self, parameters=replace(self.parameters, model=other))

    def checkpoint(self, variant: str) -> Path:
        """Where a variant of this lab's model lives, whether or not it is there yet."""
        if variant == BASELINE and not self.own_model:
            return self.base
        own = self.model_source == self.profile.model
        return self.workspace.checkpoint(variant, "" if own else self.model_name)

    def need(self, variant: str, made_by: str) -> Path:
        """The folder of a variant that another lab made; a clear error if it is not there, or is another model's."""
        folder = self.base if variant == BASELINE else self.checkpoint(variant)
        command = f"run it first: labkit run {made_by}"
        if not folder.exists():
            raise MissingResult(f"{folder} is not there", why=f"this lab reads what lab {made_by} makes", fix=command)
        if variant != BASELINE and (base := read_manifest(folder).get("base")) != self.model_name:
            raise MissingResult(
                f"{folder} was made from {base}, not from {self.model_name}",
                why="two models would be compared as if they were one",
                fix=f"give each profile a workspace of its own (LABKIT_WORKSPACE), then {command}",
            )
        return folder

    def has(self, variant: str) -> bool:
        """Whether this workspace has a variant, made from this lab's model."""
        folder = self.checkpoint(variant)
        return folder.exists() and read_manifest(folder).get("base") == self.model_name

    @property
    def device(self) -> str:
        """Where a model of this lab runs inside the notebook: `cuda` if this machine has it, else `cpu`."""
        return "cuda" if hardware.engine_build() == "cuda" and hardware.this_machine().gpus else "cpu"

    # --- doing ------------------------------------------------------------------------------------------------------

    def load(self, folder: Path) -> Any:
        """The model of a checkpoint, loaded strictly, on this lab's device, ready to read."""
        return checkpoint.load(folder).to(self.device).eval()

    def tokenizer(self) -> Any:
        return checkpoint.load_tokenizer(self.base)

    def calibration_rows(self, rows: int = 0) -> CalibrationSet:
        """The profile's calibration set, or `rows` rows of it."""
        spec = self.profile.calibration
        return calibration.calibration_set(
            spec, self.tokenizer(), data=self.parameters.data, rows=rows or spec.rows, seed=self.profile.seed
        )

    @contextmanager
    def quantizing(self, variant: str, purpose: Purpose = "headline") -> Iterator[Job]:
        """Measures what a quantize inside the block takes, and records it once the result is saved."""
        final = self.checkpoint(variant)
        with quantize.quantizing(
            final, self.base, base_name=self.model_name, variant=variant, log=self.log(variant)
        ) as job:
            yield job
        for metric, value, unit in (("seconds", job.wall_seconds, "s"), ("peak_bytes", job.peak_bytes, "bytes")):
            self.record("quantize", metric, value, variant=variant, unit=unit, purpose=purpose)
        found = checkpoint.inspect(final)
        self.record("size", "bytes", found.total_bytes, variant=variant, unit="bytes", purpose=purpose)
        print(f"Quantized and saved in {job.wall_seconds:.1f} s to {final} (library messages: {job.log})")

    def evaluate(self, requests: Sequence[Request]) -> list[Evaluation]:
        """Runs the evaluations in a child process and puts every figure, with its settings, into the ledger."""
        with evaluation_bar(len(requests)) as bar:
            done = evaluation.evaluate(
                requests,
                workspace=self.workspace,
                engine=self.profile.engine,
                offline=self.offline,
                data=self.parameters.data,
                seed=self.profile.seed,
                log=self.log("evaluation"),
                on_tick=bar,
            )
        self.workspace.ledger.append(self._measurement_of(e) for e in done)
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

    def held_out_rows(self, rows: int = 16) -> list[list[int]]:
        """Token rows of the calibration's source that no quantize of this lab has seen."""
        return self.calibration_rows(self.profile.calibration.rows + rows).input_ids[-rows:]

    def random_rows(self, rows: int) -> CalibrationSet:
        """Calibration rows of random tokens: the wrong domain, to see what it costs."""
        return calibration.random_text_set(
            self.tokenizer(), rows, self.profile.calibration.max_length, self.profile.seed
        )

    def with_cache_scales(self, variant: str, final: str, factor: float) -> Path:
        """A copy of a variant whose KV cache scales are `factor` times as large; returns its folder."""
        source, folder = self.checkpoint(variant), self.checkpoint(final)
        with publishing(folder, base=self.model_name, variant=final, cache_scale_factor=factor) as stage:
            checkpoint.rescale_cache(source, stage, factor)
        return folder

    def divergences(self, folders: Iterable[Path], rows: Sequence[Sequence[int]]) -> list[float]:
        """How far each checkpoint's next-token distributions are from the baseline's, in nats a token."""
        return divergence.divergences(self.base, list(folders), rows, self.device)

    def run_script(
        self,
        script: str,
        folder: Path,
        questions: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Any:
        """Runs a script in an engine child; it reads `job`, with `more` in it, and leaves its result in `answer`.

        env: more of the child's environment.
        """
        engine = self.profile.engine
        job = {
            "model": str(folder),
            "questions": list(questions),
            "max_model_len": model_length(folder, engine),
            "enforce_eager": engine.enforce_eager,
            **more,
        }
        return run_script(
            script,
            job,
            log=self.log("script"),
            engine=engine,
            offline=self.offline,
            deadline_seconds=SCRIPT_SECONDS,
            env=env,
        )

    def questions(self, count: int) -> list[str]:
        """A few questions to ask: unseen word problems, in the form that the embedded model was trained on."""
        return [corpus.prompt(problem.question) for problem in corpus.problems("test", count, seed=1)]

    def release(self, model: Any) -> Released:
        """Gives a model's memory back, even if a variable or an old output still names it."""
        from labkit import memory

        return memory.release(model)

    def _measurement_of(self, e: Evaluation) -> Measurement:
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
