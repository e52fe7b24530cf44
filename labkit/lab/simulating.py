"""What a lab does with simulated schemes: scores them one after another, and writes down what they scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit import checkpoint, evaluation, memory, perplexity
from labkit.chatter import to_log
from labkit.errors import DataError
from labkit.evaluation import Evaluation, Request
from labkit.lab.models import Models
from labkit.perplexity import Losses, Row
from labkit.zeroquant import Scored

if TYPE_CHECKING:
    from labkit.ledger import Measurement
    from labkit.simulation import Method, Scheme, Simulation

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
        scheme: Scheme,
        method: Method,
        texts: Mapping[str, Sequence[Row]],
        problems: int = 0,
    ) -> Scored:
        """What the simulated model scores under a scheme: perplexity on each text, and answers to `problems` problems.

        Everything goes into the ledger; the mean perplexity of GPTQ's rows are its headlines.
        """
        losses = {name: perplexity.losses(simulation.model, rows) for name, rows in texts.items()}
        exact = self._answers(simulation.model, scheme, method, problems) if problems else None
        scored = Scored(scheme, method, simulation.bits_per_weight(scheme), losses, exact)
        self._record(scored)
        return scored

    def perplexity_of(self, variant: str, texts: Mapping[str, Sequence[Row]]) -> dict[str, Losses]:
        """A checkpoint's losses on each text, by transformers; each perplexity is a headline of the ledger."""
        model = self.load(self.checkpoint(variant))
        try:
            found = {name: perplexity.losses(model, rows) for name, rows in texts.items()}
        finally:
            memory.release(model)
        self.workspace.ledger.append(self._perplexities(found, variant=variant, backend="hf"))
        return found

    def _answers(self, model: Any, scheme: Scheme, method: Method, problems: int) -> Evaluation:
        """lm-eval's own scoring of the main task, on the model as it stands."""
        request = Request(scheme.variant, self.base, self.profile.main_task, backend="hf", limit=problems)
        with to_log(self.log("simulated")):
            return evaluation.evaluate_loaded(
                model,
                checkpoint.load_tokenizer(self.base),
                request,
                workspace=self.workspace,
                engine=self.profile.engine,
                about={"simulated": scheme.variant, "method": method},
                data=self.parameters.data,
                seed=self.profile.seed,
            )

    def _record(self, scored: Scored) -> None:
        """One line for each text, one for their mean, one for the bits of a weight, one for the answers."""
        variant, settings = scored.scheme.variant, _settings(scored)
        common: dict[str, Any] = {"variant": variant, "backend": BACKEND, "settings": settings}
        mean = self.measurement(
            "perplexity",
            "perplexity",
            scored.perplexity,
            task=MEAN,
            stderr=scored.stderr,
            n=scored.rows,
            purpose="headline" if scored.method == "gptq" else "sweep",
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


def _settings(scored: Scored) -> dict[str, Any]:
    """What of a scheme its name does not say."""
    settings: dict[str, Any] = {"method": scored.method, "rank": scored.scheme.rank}
    if weights := scored.scheme.weights:
        settings["group"] = weights.group
        if weights.constraint:
            settings |= {"rounding": weights.rounding, "reading": weights.reading_taken}
    return settings
