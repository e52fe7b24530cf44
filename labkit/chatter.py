"""Sends what llm-compressor and its libraries print to a log file, and leaves one progress bar in its place.

They print in three ways: llm-compressor by loguru (to stdout, at INFO, set up when it is imported), transformers and
datasets by `logging`, all of them progress bars and warnings to stderr. Only these are caught: what a cell itself
prints stays in the cell.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

LOGGERS = ("", "transformers", "datasets", "accelerate", "huggingface_hub", "torch", "py.warnings")
STEP = re.compile(r"\((\d+)/(\d+)\): ")  # llm-compressor's sequential pipeline: "(2/5): Calibrating: 40%|..."


class ChatterLog:
    """The log of one block. `messages` are those of llm-compressor's modifiers, at every level, to be read later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[str] = []


@contextlib.contextmanager
def to_log(path: Path) -> Iterator[ChatterLog]:
    """Appends all chatter of a block to `path`; while llm-compressor goes through layers, a bar shows how far it is."""
    from llmcompressor.logger import configure_logger
    from loguru import logger

    path.parent.mkdir(parents=True, exist_ok=True)
    log = ChatterLog(path)
    with open(path, "a", encoding="utf-8", buffering=1) as file, _Bar(file, sys.stdout) as bar:
        logger.remove()
        logger.add(file, level="DEBUG", format="{time:YYYY-MM-DDTHH:mm:ss} | {level} | {name} | {message}")
        logger.add(
            lambda message: log.messages.append(message.record["message"]),
            level="DEBUG",
            filter=lambda record: (record["name"] or "").startswith("llmcompressor.modifiers"),
        )
        try:
            with _logging_to(file), warnings.catch_warnings(), contextlib.redirect_stderr(bar):
                warnings.simplefilter("default")  # a library's warning is for the log, and no error
                warnings.showwarning = _show_warning_in(file)
                yield log
                bar.fill()
        finally:
            configure_logger()  # llm-compressor's own setting of before


@contextlib.contextmanager
def children_to_log(path: Path) -> Iterator[None]:
    """Appends to `path` what child processes of a block write to stderr: lm-eval asks git, which calls "fatal" that a
    folder is no repository. Python's own stderr is not touched where it is a stream of its own, as in a kernel.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with open(path, "ab") as file:
            os.dup2(file.fileno(), 2)
            yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _show_warning_in(file: TextIO) -> Any:
    def show(message: Warning | str, category: type[Warning], source: str, line: int, *_: Any) -> None:
        file.write(warnings.formatwarning(message, category, source, line))

    return show


@contextlib.contextmanager
def _logging_to(file: TextIO) -> Iterator[None]:
    """Replaces the handlers of the libraries' loggers by one that writes to the log."""
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s | %(levelname)s | %(name)s | %(message)s"))
    before = {name: logging.getLogger(name).handlers for name in LOGGERS}
    try:
        for name, handlers in before.items():
            if handlers or not name:
                logging.getLogger(name).handlers = [handler]
        yield
    finally:
        for name, handlers in before.items():
            logging.getLogger(name).handlers = handlers


class _Bar(io.TextIOBase):
    """In place of stderr: libraries' bars become one on stdout (stderr is red in JupyterLab); the rest is logged."""

    def __init__(self, log: TextIO, shown: TextIO) -> None:
        self._log, self._shown = log, shown
        self._bar: Any = None

    def write(self, text: str) -> int:
        if step := STEP.search(text):
            self._show(int(step.group(1)), int(step.group(2)))
        if "\r" not in text:
            self._log.write(text)
        elif "100%" in text:  # of a bar, its end is enough
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
