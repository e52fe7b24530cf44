"""What a lab does: finds and loads models, quantizes, evaluates, compares; every figure goes into the ledger.

A `Lab` holds no results, only where they are: checkpoints in the workspace, measurements in the ledger. What it hides
is housekeeping (names, paths, atomic saving, memory, records); recipes, evaluation calls and scripts stand in the
notebooks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import calibration, checkpoint, divergence, evaluation, quantize, scorecard
from labkit.compare import Recovery, compare_evaluations
from labkit.engine import model_length, number_type, run_script
from labkit.lab.notebook import evaluation_bar, waiting
from labkit.lab.serving import Serving
from labkit.lab.simulating import Simulating
from labkit.tiny import corpus
from labkit.workspace import publishing

if TYPE_CHECKING:
    from labkit.calibration import CalibrationSet
    from labkit.evaluation import Evaluation, Request
    from labkit.ledger import Measurement, Purpose
    from labkit.memory import Released
    from labkit.quantize import Job

SCRIPT_SECONDS = 1800.0


class Lab(Serving, Simulating):
    """One notebook's view of its profile and workspace."""

    @contextmanager
    def quantizing(self, variant: str, purpose: Purpose = "headline", *, scratch: bool = False) -> Iterator[Job]:
        """Measures what a quantize inside the block takes, and records it once the result is saved.

        scratch: the checkpoint, `job.final`, is for this lab only, and gone at its end.
        """
        final = self.scratch(variant) if scratch else self.checkpoint(variant)
        print(f"Quantizing {self.model_name} to {variant} (library messages: {self.log(variant)})")
        with quantize.quantizing(
            final,
            self.base,
            base_name=self.model_name,
            base_source=self.model_source,
            variant=variant,
            log=self.log(variant),
        ) as job:
            yield job
        for metric, value, unit in (("seconds", job.wall_seconds, "s"), ("peak_bytes", job.peak_bytes, "bytes")):
            self.record("quantize", metric, value, variant=variant, unit=unit, purpose=purpose)
        found = checkpoint.inspect(final)
        self.record("size", "bytes", found.total_bytes, variant=variant, unit="bytes", purpose=purpose)
        print(f"Quantized and saved in {job.wall_seconds:.1f} s to {final}")

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

    def scorecard(self) -> None:
        """Every variant of this workspace: what it weighs, what it kept, how fast it is; as a table and a picture."""
        rows = scorecard.scorecard(self.workspace, self.profile.main_task.name)
        self.table([scorecard.cells(row) for row in rows])
        if picture := scorecard.picture(rows):
            self.show(picture)

    def held_out_rows(self, rows: int = 16) -> list[list[int]]:
        """Token rows of the calibration's source that no quantize of this lab has seen, the first 256 tokens of each.

        Not more, because what is computed of them may be large: a distribution over 152,000 tokens takes 0.6 MB.
        """
        return [row[:256] for row in self._rows(self.profile.calibration.rows + rows).input_ids[-rows:]]

    def random_rows(self, rows: int) -> CalibrationSet:
        """Calibration rows of random tokens: the wrong domain, to see what it costs."""
        return calibration.random_text_set(
            self.tokenizer(), rows, self.profile.calibration.max_length, self.profile.seed
        )

    def with_cache_scales(self, variant: str, factor: float) -> Path:
        """A scratch copy of a variant whose KV cache scales are `factor` times as large; returns its folder."""
        folder = self.scratch("scales") / f"{variant}-broken"
        with publishing(folder, base=self.model_name, variant=folder.name, cache_scale_factor=factor) as stage:
            checkpoint.rescale_cache(self.checkpoint(variant), stage, factor)
        return folder

    def divergences(self, folders: Iterable[Path], rows: Sequence[Sequence[int]]) -> list[float]:
        """How far each checkpoint's next-token distributions are from the baseline's, in nats a token."""
        with waiting("divergences"):
            return divergence.divergences(self.base, list(folders), rows, self.device)

    def divergences_by_row(self, folders: Iterable[Path], rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """The same for each row."""
        with waiting("divergences"):
            return divergence.divergences_by_row(self.base, list(folders), rows, self.device)

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
            "dtype": number_type(engine, folder),
            "enforce_eager": engine.enforce_eager,
            "tensor_parallel_size": engine.tensor_parallel,
            **more,
        }
        with waiting(f"an engine with {folder.name}"):
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
