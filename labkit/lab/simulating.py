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
        self.workspace.ledger.append(
            self.measurement(
                "perplexity",
                "perplexity",
                losses.perplexity,
                variant=variant,
                task=name,
                backend="hf",
                stderr=losses.stderr,
                n=len(losses.scores),
            )
            for name, losses in found.items()
        )
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
        scheme, headline = scored.scheme, "headline" if scored.method == "gptq" else "sweep"
        settings = {
            "method": scored.method,
            "group": scheme.weights.group if scheme.weights else 0,
            "rank": scheme.rank,
        }
        common: dict[str, Any] = {"variant": scheme.variant, "backend": BACKEND, "settings": settings}
        lines = [
            self.measurement(
                "perplexity",
                "perplexity",
                losses.perplexity,
                task=name,
                stderr=losses.stderr,
                n=len(losses.scores),
                purpose="sweep",
                **common,
            )
            for name, losses in scored.losses.items()
        ]
        lines.append(
            self.measurement(
                "perplexity",
                "perplexity",
                scored.perplexity,
                task=MEAN,
                stderr=scored.stderr,
                n=scored.rows,
                purpose=headline,
                **common,
            )
        )
        lines.append(
            self.measurement("size", "bits_per_weight", scored.bits_per_weight, unit="bits", purpose="sweep", **common)
        )
        if exact := scored.exact:
            lines.append(
                self.measurement(
                    "accuracy",
                    exact.request.task.metric,
                    exact.value,
                    variant=scheme.variant,
                    task=exact.request.task.name,
                    backend=BACKEND,
                    stderr=exact.stderr,
                    n=exact.n,
                    unit="share",
                    settings=exact.settings,
                    purpose="sweep",
                )
            )
        self.workspace.ledger.append(lines)
