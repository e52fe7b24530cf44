"""What a lab does with simulated schemes: scores them one after another, and writes down what they scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit import checkpoint, evaluation, memory, perplexity
from labkit.chatter import children_to_log, to_log
from labkit.errors import DataError
from labkit.evaluation import Evaluation, Request
from labkit.lab.models import Models
from labkit.lab.notebook import waiting
from labkit.perplexity import Losses, Row
from labkit.zeroquant import Scored

if TYPE_CHECKING:
    from labkit.ledger import Measurement, Purpose
    from labkit.simulation import Applied, Simulation

BACKEND = "simulated"
MEAN = "mean of texts"


class Simulating(Models):
    """The part of a `Lab` that simulates."""

    def held_out(self) -> dict[str, list[Row]]:
        """The profile's held-out texts by name. One that can't be had here is left out, and said; not all may be."""
        tokenizer, found = checkpoint.load_tokenizer(self.base), {}
        missing: list[DataError] = []
        for text in self.profile.simulation.texts:
            try:
                found[text.name] = perplexity.held_out_rows(
                    text, tokenizer, data=self.parameters.data, seed=self.profile.seed
                )
            except DataError as error:
                missing.append(error)
                print(f"{text.name} is left out: {error.what}")
        if not found:
            raise missing[0]
        return found

    def score(
        self,
        simulation: Simulation,
        texts: Mapping[str, Sequence[Row]],
        *,
        problems: int = 0,
        purpose: Purpose = "sweep",
    ) -> Scored:
        """What the model scores under the scheme that is applied: perplexity on each text, and on `problems` problems.

        All of it goes into the ledger; the mean over the texts for `purpose`, the rest as points of a sweep.
        """
        applied = simulation.applied
        losses = {name: perplexity.losses(simulation.model, rows) for name, rows in texts.items()}
        exact = self._answers(simulation.model, applied, problems) if problems else None
        bits = simulation.bits_per_weight(applied.scheme)
        scored = Scored(applied.scheme, applied.method, bits, losses, exact)
        self._record(scored, applied.settings() | _rows_of(texts), purpose)
        return scored

    def perplexity_of(self, variant: str, texts: Mapping[str, Sequence[Row]]) -> dict[str, Losses]:
        """A checkpoint's losses on each text, by transformers; each perplexity is a headline of the ledger."""
        with waiting(f"perplexity of {variant}"):
            model = self.load(self.checkpoint(variant))
            try:
                found = {name: perplexity.losses(model, rows) for name, rows in texts.items()}
            finally:
                memory.release(model)
        lines = self._perplexities(found, variant=variant, backend="hf", settings=_rows_of(texts))
        self.workspace.ledger.append(lines)
        return found

    def _answers(self, model: Any, applied: Applied, problems: int) -> Evaluation:
        """lm-eval's own scoring of the main task, on the model as it stands."""
        variant = applied.scheme.variant
        request = Request(variant, self.base, self.profile.main_task, backend="hf", limit=problems)
        log = self.log("simulated")
        with to_log(log), children_to_log(log):
            return evaluation.evaluate_loaded(
                model,
                checkpoint.load_tokenizer(self.base),
                request,
                workspace=self.workspace,
                engine=self.profile.engine,
                about={"simulated": variant} | applied.settings(),
                data=self.parameters.data,
                seed=self.profile.seed,
            )

    def _record(self, scored: Scored, settings: Mapping[str, Any], purpose: Purpose) -> None:
        """One line for each text, one for their mean, one for the bits of a weight, one for the answers."""
        variant = scored.scheme.variant
        common: dict[str, Any] = {"variant": variant, "backend": BACKEND, "settings": dict(settings)}
        mean = self.measurement(
            "perplexity",
            "perplexity",
            scored.perplexity,
            task=MEAN,
            stderr=scored.stderr,
            n=scored.rows,
            purpose=purpose,
            **common,
        )
        bits = self.measurement(
            "size", "bits_per_weight", scored.bits_per_weight, unit="bits", purpose="sweep", **common
        )
        lines = [*self._perplexities(scored.losses, purpose="sweep", **common), mean, bits]
        if exact := scored.exact:
            answers: dict[str, Any] = {"variant": variant, "backend": BACKEND, "settings": exact.settings}
            task = exact.request.task
            lines.append(
                self.measurement(
                    "accuracy",
                    task.metric,
                    exact.value,
                    task=task.name,
                    stderr=exact.stderr,
                    n=exact.n,
                    unit="share",
                    purpose="sweep",
                    **answers,
                )
            )
        self.workspace.ledger.append(lines)

    def _perplexities(self, losses: Mapping[str, Losses], **common: Any) -> list[Measurement]:
        """A line for each text."""
        return [
            self.measurement(
                "perplexity",
                "perplexity",
                found.perplexity,
                task=name,
                stderr=found.stderr,
                n=len(found.scores),
                **common,
            )
            for name, found in losses.items()
        ]


def _rows_of(texts: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """Which texts were read, and how many tokens of each were predicted: what a perplexity depends on."""
    return {"tokens": {name: sum(row.predicted for row in rows) for name, rows in texts.items()}}
