"""What surrounds a quantize: strict loading, measuring, a log for the chatter, atomic saving, and memory given back.

The recipe and `oneshot(...)` stand in the notebook, where a learner sees them:

    with quantizing(final, base, log=log) as job:
        model = job.load()
        oneshot(model=model, recipe=recipe, dataset=rows.dataset(), max_seq_length=256, num_calibration_samples=512)
        job.save(model, rows)
    print(job.wall_seconds, job.peak_bytes, job.fallbacks)
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import checkpoint, hardware, memory
from labkit.chatter import ChatterLog, to_log
from labkit.errors import CheckpointError, UsageError
from labkit.faster import faster
from labkit.gptqlog import fallbacks_in, gptq_layers_in
from labkit.lastblock import last_block_logits
from labkit.workspace import publishing

if TYPE_CHECKING:
    import torch

    from labkit.calibration import CalibrationSet


class Job:
    """One quantize. Figures are there once `save` is done; `fallbacks` once oneshot has ended.

    wall_seconds: from the begin of the block to the end of the save, loading included. peak_bytes: the largest size of
    this process in that time, or of the GPU's tensors where one was used. before_bytes, after_bytes: the process (or
    GPU) before the model was loaded and after it was released.
    """

    def __init__(
        self, final: Path, base: Path, base_name: str, base_source: str, variant: str, log: ChatterLog
    ) -> None:
        self.final, self.base, self.base_name, self.variant = final, base, base_name, variant
        self.base_source = base_source
        self.log = log.path
        self.wall_seconds = 0.0
        self.peak_bytes = 0
        self.before_bytes = self.after_bytes = 0
        self.saved = False
        self._chatter = log
        self._models: list[Any] = []
        self._in_memory: torch.Tensor | None = None
        self._measuring = ExitStack()

    @cached_property
    def tokenizer(self) -> Any:
        """The base model's tokenizer; it is saved beside the weights."""
        return checkpoint.load_tokenizer(self.base)

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Layers that GPTQ gave up and rounded to nearest instead, because their Hessian could not be inverted."""
        return fallbacks_in(self._chatter.messages)

    @property
    def gptq_layers(self) -> tuple[str, ...]:
        """Layers that GPTQ worked on; empty if the recipe had no GPTQ."""
        return gptq_layers_in(self._chatter.messages)

    def load(self) -> Any:
        """The base model, loaded strictly, on the CPU as llm-compressor wants it (it moves layers to a GPU itself)."""
        model = checkpoint.load(self.base)
        self._models.append(model)
        return model

    def also(self, messages: Sequence[str]) -> None:
        """Takes in what llm-compressor logged in other processes of the same quantize."""
        self._chatter.messages.extend(messages)

    def save(self, model: Any, calibration: CalibrationSet | None = None, **facts: Any) -> None:
        """Saves the quantized model and its tokenizer to `final`, atomically, and stops the clock.

        The manifest gets the base, the variant, the recipe, what calibrated it, GPTQ's fallbacks, the versions of the
        stack, and `facts`.
        """
        from llmcompressor.core import active_session

        if model not in self._models:
            self._models.append(model)
        recipe = active_session().lifecycle.recipe
        made = self._made(recipe.yaml() if recipe else "", calibration)
        checkpoint.save(model, self.tokenizer, self.final, **made, **facts)
        self.saved = True
        self._measuring.close()
        self._in_memory = last_block_logits(
            model
        )  # now, and not before: until it is compressed, each forward rounds all weights

    @contextmanager
    def folder(self, recipe: str, **facts: Any) -> Iterator[Path]:
        """An empty folder for a library that writes a checkpoint by itself, with no model in memory: `model_free_ptq`.

        recipe: how it is made, in words, for the manifest. When the block ends, the folder becomes `final`, with a
        manifest as `save` writes it, and the clock stops. Layers made in the block start with no values of their own.
        Raises CheckpointError, and leaves an older `final` as it was, if the tensors are not what config.json says.
        """
        from transformers.initialization import no_init_weights

        with publishing(self.final, **self._made(recipe, None), **facts) as stage:
            with no_init_weights():  # random numbers for layers that get their weights at once: a fifth of the time
                yield stage
            if wrong := checkpoint.inspect(stage).mismatches:
                raise CheckpointError(
                    f"what was written for {self.final} is no checkpoint: {'; '.join(wrong[:3])}",
                    why="config.json says something else than the tensors are",
                    fix="look at what was left out (`ignore`) and at the versions of llmcompressor and the lock",
                )
        self.saved = True
        self._measuring.close()

    def _made(self, recipe: str, calibration: CalibrationSet | None) -> dict[str, Any]:
        """How this checkpoint came about, for its manifest."""
        return {
            "base": self.base_name,
            "variant": self.variant,
            **checkpoint.origin(self.base_source, self.base),
            "recipe": recipe,
            "calibration": calibration.facts() if calibration else None,
            "gptq_fallbacks": list(self.fallbacks),
            "versions": hardware.stack_versions(),
        }

    def reload_difference(self) -> float:
        """How far the saved checkpoint is from the model in memory: mean |difference| of logits over mean |logit|.

        The logits are those of a fixed text through the last block alone, which costs next to nothing.
        Loads the checkpoint once more, strictly, and lets go of it again.
        """
        model = checkpoint.load(self.final)
        try:
            after = last_block_logits(model)
        finally:
            memory.release(model)
        if self._in_memory is None:
            raise UsageError("nothing was saved yet", fix="call job.save(model) in the block first")
        return float((after - self._in_memory).abs().mean() / self._in_memory.abs().mean())

    @contextmanager
    def _clock(self) -> Iterator[None]:
        began = time.perf_counter()
        with memory.peak() as peak:
            yield
        self.wall_seconds = time.perf_counter() - began
        self.peak_bytes = peak.device_peak_bytes or peak.peak_bytes

    def _begin(self) -> None:
        self.before_bytes = memory.device_bytes() or memory.process_bytes()
        self._measuring.enter_context(self._clock())

    def _end(self, release: bool) -> None:
        """Lets go of the models: llm-compressor's session holds one, and so may the notebook's variables."""
        from llmcompressor.core import reset_session

        self._measuring.close()
        reset_session()
        on_device = memory.device_bytes() > 0
        for model in self._models if release else []:
            memory.release(model)
        if not (release and self._models):  # else it was just done, and looking for garbage takes a third of a second
            memory.return_free_memory()
        self._models.clear()
        self.after_bytes = memory.device_bytes() if on_device else memory.process_bytes()


@contextmanager
def quantizing(
    final: Path,
    base: Path,
    *,
    log: Path,
    base_name: str = "",
    base_source: str = "",
    variant: str = "",
    seed: int = 0,
    release: bool = True,
) -> Iterator[Job]:
    """Surrounds one quantize of the checkpoint `base` into the checkpoint `final`; see Job and this module's example.

    log: where the libraries' messages go. base_name and variant: for the manifest, by default the folders' names.
    base_source: what the user calls the base model (its hub id, say), from which the manifest tells where it came from.
    seed: for torch, so that llm-compressor's order of rows is the same each time. release: take the model's memory back
    at the end of the block, though the notebook still names it. Raises UsageError if the block ends without a save: a
    later step would take an older checkpoint for this one.
    """
    import torch

    with to_log(log) as chatter, faster():
        name = base_name or checkpoint.short_name(str(base))
        job = Job(final, base, name, base_source or str(base), variant or final.name, chatter)
        torch.manual_seed(seed)
        try:
            with memory.trimmed():  # over before the end: Python looks for no garbage while another thread does
                job._begin()
                yield job
        finally:
            job._end(release)
    if not job.saved:
        raise UsageError(
            f"nothing was saved to {final}",
            why="a later step would find no checkpoint there, or an older one",
            fix="end the block with job.save(model)",
        )
