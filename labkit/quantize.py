"""What surrounds a quantize: strict loading, measuring, a log for library output, atomic saving, memory given back.

The recipe and `oneshot(...)` stand in the notebook, where a learner sees them:

    with quantizing(final, base, log=log) as job:
        model = job.load()
        oneshot(model=model, recipe=recipe, dataset=rows.dataset(), max_seq_length=256, num_calibration_samples=512)
        job.save(model, rows)
    print(job.wall_seconds, job.peak_bytes, job.fallbacks)
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from labkit import checkpoint, hardware, memory
from labkit.behaviour import last_block_logits
from labkit.errors import CheckpointError, UsageError
from labkit.files import publishing

if TYPE_CHECKING:
    import torch

    from labkit.data import CalibrationSet

# llmcompressor 0.14, modifiers/gptq/base.py: a warning names ten layers, if there are more a debug message names all.
FALLBACKS = re.compile(r"(?:inversion failure|Affected modules): (.+?)(?:, and \d+ more .*)?$", re.DOTALL)
GPTQ_LAYERS = re.compile(r"Quantizing \d+ module\(s\): \[(.*)\]", re.DOTALL)
LOGGERS = ("", "transformers", "datasets", "accelerate", "huggingface_hub", "torch", "py.warnings")
STEP = re.compile(r"\((\d+)/(\d+)\): ")  # llm-compressor's sequential pipeline: "(2/5): Calibrating: 40%|..."


class Job:
    """One quantize. Figures are there once `save` is done; `fallbacks` once oneshot has ended.

    wall_seconds: from the begin of the block to the end of the save, loading included. peak_bytes: the largest size of
    this process in that time, or of the GPU's tensors where one was used. before_bytes, after_bytes: the process (or
    GPU) before the model was loaded and after it was released. recipe: as it was saved. has_model: whether a model in
    memory was saved.
    """

    def __init__(self, final: Path, base: Path, names: tuple[str, str, str], log: Path, messages: list[str]) -> None:
        self.final, self.base, self.log = final, base, log
        self.base_name, self.base_source, self.variant = names
        self.wall_seconds = 0.0
        self.peak_bytes = self.before_bytes = self.after_bytes = 0
        self.saved = self.has_model = False
        self.recipe = ""
        self._messages = messages
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
        found: list[str] = []
        for message in self._messages:
            if named := FALLBACKS.search(message):
                found += named[1].split(", ")
            elif "hessian inversion fail" in message.lower():
                raise CheckpointError(
                    f"GPTQ fell back to round-to-nearest, and this labkit can't read where: {message}",
                    "the result would be reported as GPTQ",
                    "use the llmcompressor of the lock",
                )
        return tuple(dict.fromkeys(found))

    @property
    def gptq_layers(self) -> tuple[str, ...]:
        """Layers that GPTQ worked on; empty if the recipe had no GPTQ."""
        named = [match[1] for message in self._messages if (match := GPTQ_LAYERS.search(message))]
        return tuple(dict.fromkeys(name.strip("'\" ") for names in named for name in names.split(",")))

    def load(self) -> Any:
        """The base model, loaded strictly, on the CPU as llm-compressor wants it (it moves layers to a GPU itself)."""
        model = checkpoint.load(self.base)
        self._models.append(model)
        return model

    def save(self, model: Any, calibration: CalibrationSet | None = None, **facts: Any) -> None:
        """Saves the quantized model and its tokenizer to `final`, atomically, and stops the clock.

        The manifest gets the base, the variant, the recipe, what calibrated it, GPTQ's fallbacks, the versions of the
        stack, and `facts`.
        """
        from llmcompressor.core import active_session

        if model not in self._models:
            self._models.append(model)
        recipe = active_session().lifecycle.recipe
        self.recipe = recipe.yaml() if recipe else ""
        made = self._made(self.recipe, calibration)
        checkpoint.save(model, self.tokenizer, self.final, **made, **facts)
        self.saved = self.has_model = True
        self._measuring.close()
        self._in_memory = last_block_logits(model)  # not before: until it is compressed, a forward rounds all weights

    @contextmanager
    def folder(self, recipe: str, **facts: Any) -> Iterator[Path]:
        """An empty folder for a library that writes a checkpoint by itself, with no model in memory: `model_free_ptq`.

        recipe: how it is made, in words, for the manifest. When the block ends, the folder becomes `final`, with a
        manifest as `save` writes it, and the clock stops. Raises CheckpointError, and leaves an older `final` as it
        was, if the tensors are not what config.json says.
        """
        from transformers.initialization import no_init_weights

        with publishing(self.final, **self._made(recipe, None), **facts) as stage:
            with no_init_weights():  # random numbers for layers that get their weights at once: a fifth of the time
                yield stage
            if wrong := checkpoint.inspect(stage).mismatches:
                raise CheckpointError(
                    f"what was written for {self.final} is no checkpoint: {'; '.join(wrong[:3])}",
                    "config.json says something else than the tensors are",
                    "look at what was left out (`ignore`) and at the versions of llmcompressor and the lock",
                )
        self.saved = True
        self._measuring.close()

    def reload_difference(self) -> float:
        """How far the saved checkpoint is from the model in memory: mean |difference| of logits over mean |logit|.

        The logits are those of a fixed text through the last block alone, which costs next to nothing.
        """
        if self._in_memory is None:
            raise UsageError("nothing was saved yet", fix="call job.save(model) in the block first")
        model = checkpoint.load(self.final)
        try:
            after = last_block_logits(model)
        finally:
            memory.release(model)
        return float((after - self._in_memory).abs().mean() / self._in_memory.abs().mean())

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

    @contextmanager
    def _clock(self) -> Iterator[None]:
        self.before_bytes = memory.device_bytes() or memory.process_bytes()
        began = time.perf_counter()
        with memory.peak() as peak:
            yield
        self.wall_seconds = time.perf_counter() - began
        self.peak_bytes = peak.device_peak_bytes or peak.peak_bytes

    def _end(self) -> None:
        """Lets go of the models: llm-compressor's session holds one, and so may the notebook's variables."""
        from llmcompressor.core import reset_session

        self._measuring.close()
        reset_session()
        on_device = memory.device_bytes() > 0
        for model in self._models:
            memory.release(model)
        self._models.clear()
        memory.return_free_memory()
        self.after_bytes = memory.device_bytes() if on_device else memory.process_bytes()


@contextmanager
def quantizing(
    final: Path, base: Path, *, log: Path, base_name: str = "", base_source: str = "", variant: str = ""
) -> Iterator[Job]:
    """Surrounds one quantize of the checkpoint `base` into the checkpoint `final`; see Job and this module's example.

    log: where the libraries' messages go. base_name and variant: for the manifest, by default the folders' names.
    base_source: what the user calls the base model (its hub id, say), from which the manifest tells where it came from.
    Raises UsageError if the block ends without a save: a later step would take an older checkpoint for this one.
    """
    import torch

    names = (base_name or checkpoint.short_name(str(base)), base_source or str(base), variant or final.name)
    with to_log(log) as messages:
        job = Job(final, base, names, log, messages)
        torch.manual_seed(0)  # llm-compressor's order of rows is the same each time
        try:
            job._measuring.enter_context(job._clock())
            yield job
        finally:
            job._end()
    if not job.saved:
        raise UsageError(
            f"nothing was saved to {final}",
            "a later step would find no checkpoint there, or an older one",
            "end the block with job.save(model)",
        )


# --- library output goes to a log -------------------------------------------------------------------------------------


@contextmanager
def to_log(path: Path) -> Iterator[list[str]]:
    """Appends what llm-compressor and its libraries print in a block to `path`, and shows one progress bar instead.

    They print in three ways: llm-compressor by loguru (to stdout), transformers and datasets by `logging`, all of them
    bars and warnings to stderr. Only these are caught: what a cell itself prints stays in the cell. Gives the messages
    of llm-compressor's modifiers, at every level, to be read later.
    """
    from llmcompressor.logger import configure_logger
    from loguru import logger

    path.parent.mkdir(parents=True, exist_ok=True)
    messages: list[str] = []
    consoles = {h: h.stream for n in LOGGERS for h in logging.getLogger(n).handlers if type(h) is logging.StreamHandler}
    with open(path, "a", encoding="utf-8", buffering=1) as file, _Bar(file) as bar:
        logger.remove()
        logger.add(file, level="DEBUG", format="{time:YYYY-MM-DDTHH:mm:ss} | {level} | {name} | {message}")
        logger.add(
            lambda message: messages.append(message.record["message"]),
            level="DEBUG",
            filter=lambda record: (record["name"] or "").startswith("llmcompressor.modifiers"),
        )
        try:
            for handler in consoles:  # they hold the stderr of when they were made
                handler.setStream(file)
            with warnings.catch_warnings(), contextlib.redirect_stderr(bar):
                warnings.simplefilter("default")  # a library's warning is for the log, and no error
                yield messages
                bar.fill()
        finally:
            for handler, stream in consoles.items():
                handler.setStream(stream)
            configure_logger()  # llm-compressor's own setting of before


class _Bar(io.TextIOBase):
    """In place of stderr: libraries' bars become one on stdout (stderr is red in JupyterLab); the rest is logged."""

    def __init__(self, log: TextIO) -> None:
        self._log, self._shown = log, sys.stdout
        self._bar: Any = None

    def write(self, text: str) -> int:
        if step := STEP.search(text):
            self._show(int(step[1]), int(step[2]))
        if "\r" not in text or "100%" in text:  # of a bar, its end is enough
            self._log.write(text.replace("\r", "\n"))
        return len(text)

    def _show(self, step: int, steps: int) -> None:
        from tqdm import tqdm

        if self._bar is None or self._bar.total != steps or step - 1 < self._bar.n:
            self.fill()
            self._bar = tqdm(total=steps, desc="Quantizing", unit="block", file=self._shown)
        self._bar.update(step - 1 - self._bar.n)

    def fill(self) -> None:
        """The bar ends, full: only the begin of a step is told, so the end of the last one is told here."""
        if self._bar is not None:
            self._bar.update(self._bar.total - self._bar.n)
            self._bar.close()

    def close(self) -> None:
        if self._bar is not None:  # closed already, unless the block ended in an error
            self._bar.close()
        super().close()
