"""What touches Jupyter: parameters as papermill injects them, bars and clocks, figures, tables, quiet libraries."""

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
from typing import Any

from labkit import explorers
from labkit.errors import UsageError
from labkit.explorers import Explorer
from labkit.figures import Figure

OUTPUT_WIDTH = 96  # characters that a cell's output shows in JupyterLab on a small screen
CLOCK_SECONDS = 1.0
INJECTED = "# Parameters"  # how papermill begins the cell it injects


def refuse_unknown_parameters(known: Mapping[str, Any]) -> None:
    """Raises UsageError if papermill injected a name that the lab does not have (papermill itself only warns)."""
    shell = explorers.current_shell()
    for source in shell.user_ns.get("In", []) if shell else []:
        if source.startswith(INJECTED):
            targets = [t for node in ast.parse(source).body if isinstance(node, ast.Assign) for t in node.targets]
            if unknown := {target.id for target in targets if isinstance(target, ast.Name)} - known.keys():
                raise UsageError(
                    f"this lab has no parameter {', '.join(sorted(unknown))}",
                    why="a misspelt parameter would be ignored and the lab would run with its default",
                    fix=f"use one of: {', '.join(sorted(known))}",
                )


def quiet_libraries() -> None:
    """Sets libraries up for a cell: no warnings that no learner can act on, no loading bars, threads that give way."""
    gc.set_threshold(100_000, 50, 100)  # looking for garbage is a quarter of what importing llm-compressor takes
    for name, value in {
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "PASSIVE",  # before torch: see engine.py
        "TRANSFORMERS_VERBOSITY": "error",
        "LLM_COMPRESSOR_LOG_LEVEL": "ERROR",  # it warns on import; a quantize's own log has it all
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }.items():
        os.environ.setdefault(name, value)
    noisy = r"(torch|transformers|llmcompressor|compressed_tensors)\b.*"
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=noisy)
    logging.getLogger("transformers").setLevel(logging.ERROR)


@contextmanager
def bar(total: int, what: str, unit: str, adds: bool = False) -> Iterator[Callable[..., None]]:
    """A progress bar; what it gives is called with the number that is done, and what is done now if that is known.

    adds: it is called with what has just been done instead. At the end of its block the bar is full, unless that ended
    in an error.
    """
    from tqdm import tqdm

    # stderr is red in JupyterLab
    with tqdm(total=total, desc=what, unit=unit, file=sys.stdout, unit_scale=unit == "B") as drawn:

        def show(done: int, doing: str = "") -> None:
            drawn.set_postfix_str(doing, refresh=False)
            drawn.update(done if adds else done - drawn.n)

        yield show
        drawn.set_postfix_str("", refresh=False)
        drawn.update(total - drawn.n)


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
        if explorers.present():
            ticking.start()
        try:
            yield
        finally:
            ended.set()
            if ticking.ident:
                ticking.join()
            clock.refresh()


def show(what: str | Figure | Explorer | Sequence[Mapping[str, Any]]) -> None:
    """Shows a figure with its description; an explorer, without a front end as the figure of its first state; rows of
    named values as a table; or a sentence, in lines that fit a cell's output, which breaks longer ones in mid-word.
    """
    if isinstance(what, str):
        wrap = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
        print(*textwrap.wrap(what, OUTPUT_WIDTH, **wrap), sep="\n")  # type: ignore[arg-type]
    elif isinstance(what, Explorer):
        explorers.show(what) if explorers.present() else show(what.at())
    elif isinstance(what, Figure):
        _show_figure(what)
    else:
        _show_table(what)


def show_markdown(text: str) -> None:
    """Text with headings and tables, as a front end shows it."""
    from IPython.display import Markdown, display

    display(Markdown(text))


def _show_figure(figure: Figure) -> None:
    """A figure as PNG and its description as text; both are in the saved notebook, with and without a front end."""
    from IPython.display import Image, display

    display(Image(figure.png(), alt=figure.description))
    show_markdown(f"*{figure.description}*")


def _show_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Numbers are aligned right and keep the form they were given in."""
    names = list(rows[0])
    numeric = {name: all(isinstance(row[name], int | float) for row in rows) for name in names}
    lines = [names, ["---:" if numeric[name] else ":---" for name in names]]
    for row in rows:
        lines.append(
            [f"{v:,.4g}" if isinstance(v := row[n], float) else f"{v:,}" if numeric[n] else str(v) for n in names]
        )
    show_markdown("\n".join(f"| {' | '.join(line)} |" for line in lines))
