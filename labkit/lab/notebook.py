"""What touches Jupyter: parameters as papermill injects them, figures, tables, and quiet libraries."""

from __future__ import annotations

import ast
import gc
import logging
import os
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from labkit.errors import UsageError
from labkit.lab import frontend
from labkit.lab.shell import current_shell
from labkit.profiles import Parameters

OUTPUT_WIDTH = 96  # characters that a cell's output shows in JupyterLab on a small screen
CLOCK_SECONDS = 1.0
INJECTED = "# Parameters"  # how papermill begins the cell it injects


def assigned_names(source: str) -> set[str]:
    """The names that a cell of plain assignments sets."""
    targets = [t for node in ast.parse(source).body if isinstance(node, ast.Assign) for t in node.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def refuse_unknown_parameters(known: Mapping[str, Any]) -> None:
    """Raises UsageError if papermill injected a name that the lab does not have (papermill itself only warns)."""
    shell = current_shell()
    history = shell.user_ns.get("In", []) if shell else []
    for source in history:
        if source.startswith(INJECTED):
            unknown = assigned_names(source) - known.keys()
            if unknown:
                raise UsageError(
                    f"this lab has no parameter {', '.join(sorted(unknown))}",
                    why="a misspelt parameter would be ignored and the lab would run with its default",
                    fix=f"use one of: {', '.join(sorted(known))}",
                )


def parameters_from(given: Mapping[str, Any]) -> Parameters:
    """A lab's parameters, checked by name."""
    names = {f.name for f in fields(Parameters)}
    if unknown := given.keys() - names:
        raise UsageError(f"open_lab() knows no {', '.join(sorted(unknown))}", fix=f"use: {', '.join(sorted(names))}")
    return Parameters(**given)


def quiet_libraries() -> None:
    """Sets libraries up for a cell: no warnings that no learner can act on, no loading bars, threads that give way."""
    gc.set_threshold(100_000, 50, 100)  # looking for garbage is a quarter of what importing llm-compressor takes
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: see engine/environment.py
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")  # it warns on import; a quantize's own log has it all
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings(
            "ignore", category=category, module=r"(torch|transformers|llmcompressor|compressed_tensors)\b.*"
        )
    logging.getLogger("transformers").setLevel(logging.ERROR)


@contextmanager
def _bar(total: int, what: str, unit: str, **more: Any) -> Iterator[Any]:
    """A progress bar; at the end of its block it is full, unless that ended in an error."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit=unit, file=sys.stdout, **more) as bar:  # stderr is red in JupyterLab
        yield bar
        bar.update(total - bar.n)


@contextmanager
def evaluation_bar(total: int) -> Iterator[Callable[[int, int, str], None]]:
    """A progress bar over evaluations; what it gives is called with (done, total, what is done now)."""
    with _bar(total, "evaluating", "task") as bar:

        def show(done: int, _: int, doing: str) -> None:
            bar.set_postfix_str(doing, refresh=False)
            bar.update(done - bar.n)

        yield show
        bar.set_postfix_str("", refresh=False)


@contextmanager
def progress_bar(total: int, what: str, unit: str) -> Iterator[Callable[[int], None]]:
    """A progress bar; what it gives is called with the number that is done."""
    with _bar(total, what, unit) as bar:
        yield lambda done: bar.update(done - bar.n)


@contextmanager
def byte_bar(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A progress bar of bytes; what it gives is called with the bytes that have just moved."""
    with _bar(total, what, "B", unit_scale=True) as bar:
        yield bar.update


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A clock, for what takes a while and can't say how far it is. It ticks where somebody watches it."""
    from tqdm import tqdm

    ended = threading.Event()
    with tqdm(desc=what, bar_format="{desc}: {elapsed}", file=sys.stdout) as clock:

        def tick() -> None:
            while not ended.wait(CLOCK_SECONDS):
                clock.refresh()

        ticking = threading.Thread(target=tick, name="clock")
        if frontend.present():
            ticking.start()
        try:
            yield
        finally:
            ended.set()
            if ticking.ident:
                ticking.join()
            clock.refresh()


def show_markdown(text: str) -> None:
    """Text with headings and tables, as a front end shows it."""
    from IPython.display import Markdown, display

    display(Markdown(text))


def wrapped(text: str) -> str:
    """A sentence in lines that fit a notebook's output, which breaks longer ones in the middle of a word."""
    return textwrap.fill(text, OUTPUT_WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def show_figure(drawing: Any, description: str) -> None:
    """A figure as PNG and its description as text; both are in the saved notebook, with and without a front end."""
    import io

    from IPython.display import Image, Markdown, display

    png = io.BytesIO()
    drawing.savefig(png, format="png", dpi=110)
    display(Image(png.getvalue(), alt=description))
    display(Markdown(f"*{description}*"))


def show_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of named values as a Markdown table; numbers are aligned right and keep the form they were given in."""
    from IPython.display import Markdown, display

    names = list(rows[0])
    numeric = {name: all(isinstance(row[name], int | float) for row in rows) for name in names}
    lines = ["| " + " | ".join(names) + " |", "|" + "|".join("---:" if numeric[n] else ":---" for n in names) + "|"]
    for row in rows:
        cells = [
            f"{row[n]:,.4g}" if isinstance(row[n], float) else f"{row[n]:,}" if numeric[n] else str(row[n])
            for n in names
        ]
        lines.append("| " + " | ".join(cells) + " |")
    display(Markdown("\n".join(lines)))
