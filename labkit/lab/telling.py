"""What a lab says to its learner: checks, exercises, guesses, figures, tables, and its end."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.engine import end_fork_servers, guards_of_forks
from labkit.errors import CheckFailed, LabError
from labkit.lab import frontend, notebook
from labkit.lab.binding import Binding
from labkit.profiles import BASELINE

if TYPE_CHECKING:
    from labkit.checks import Check
    from labkit.explorers import Explorer
    from labkit.figures import Figure


class Telling(Binding):
    """The half of a `Lab` that talks."""

    def check(self, check: Check) -> None:
        """Prints a judgement; one that fails stops the lab, unless it is an expectation and this run may not meet it:
        on another model, or shortened by `limit`.
        """
        if check.kind == "expectation" and not (self.own_model and not self.parameters.limit):
            print(notebook.wrapped(f"observed: {check.looked_at}: {check.found}."))
            return
        if not check.ok:
            raise CheckFailed(f"Looked at {check.looked_at}: {check.found}.", fix=check.fix)
        print(notebook.wrapped(f"✔ Looked at {check.looked_at}: {check.found}."))

    def exercise(self, check: Check | None) -> None:
        """Prints how an exercise stands: not yet, right, or a hint."""
        if check is None:
            print("Not yet: replace the `...` in the cell above with your answer, then run both cells again.")
        elif check.ok:
            print(f"✔ {check.found}.")
        else:
            raise CheckFailed(f"Not quite: {check.found}.", fix=check.fix)

    def say(self, sentence: str) -> None:
        """A sentence about what a cell computed, in lines that fit its output."""
        print(notebook.wrapped(sentence))

    def predict(self, about: str, guess: float, question: str) -> None:
        """Asks for a guess, to stand beside the measurement; `guess` is taken if the learner gives none."""
        self.guesses[about] = float(guess)
        if frontend.present():
            frontend.ask(question, guess, lambda answer: self.guesses.update({about: answer}))
        else:
            print(f"{question}\nThe guess: {guess:g}.")

    def outcome(self, about: str, measured: float, form: str = "{:.3g}") -> None:
        """The guess beside what was measured; both go into the ledger."""
        guess = self.guesses.get(about)
        measured += 0.0  # no "-0.000"
        if guess is not None:
            found = {"measured": measured if math.isfinite(measured) else str(measured)}  # JSON knows no infinity
            self.record("prediction", about, guess, variant=BASELINE, purpose="sweep", settings=found)
        said = "you made no guess" if guess is None else f"you guessed {form.format(guess)}"
        print(f"{about}: measured {form.format(measured)}; {said}.")

    def show(self, figure: Figure) -> None:
        """A figure, with its description under it."""
        notebook.show_figure(figure.drawing, figure.description)

    def explore(self, explorer: Explorer) -> None:
        """An interactive picture where there is a front end; without one, the figure of its default state."""
        if frontend.present():
            frontend.show(explorer)
        else:
            self.show(explorer.at())

    def table(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of named values as a table."""
        notebook.show_table(rows)

    def progress(self, total: int, what: str, unit: str) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar; what its block gets is called with the number that is done."""
        return notebook.progress_bar(total, what, unit)

    def moving(self, total: int, what: str) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar of bytes; what its block gets is called with the bytes that have just moved."""
        return notebook.byte_bar(total, what)

    def read(self, text: str) -> None:
        """A text in Markdown, as its readers will see it."""
        notebook.show_markdown(text)

    def skip(self, part: str, reason: str) -> None:
        """Says that this machine can't do a part of the lab; it shows in the report with the reason, not as passed."""
        print(f"Skipped: {part}. {reason}")
        if path := os.environ.get("LABKIT_SKIPS_FILE"):
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"part": part, "reason": reason}) + "\n")

    def end(self) -> None:
        """The end mark: frees scratch, says what this lab still holds. A run passed only if this was reached."""
        import psutil

        self.free_scratch()
        end_fork_servers(idle_only=True)  # one whose engine still runs is told of below
        me = psutil.Process()
        left = {child.pid for child in me.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE}
        left |= set(guards_of_forks())
        print(f"End of {self.name}. This kernel holds {me.memory_info().rss / 1e6:,.0f} MB; {len(left)} engines run.")
        print("Stop the kernel (Kernel > Shut Down) to give that back, and your workbench when you leave.")
        if left:
            raise LabError(f"{len(left)} processes of this lab still run", fix="restart the kernel; it ends them")
        token, path = os.environ.get("LABKIT_END_TOKEN"), os.environ.get("LABKIT_END_FILE")
        if token and path:
            Path(path).write_text(token, encoding="utf-8")
