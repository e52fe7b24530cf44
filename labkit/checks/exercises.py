"""Of a learner's answer to an exercise."""

from __future__ import annotations

from typing import Any

from labkit.checks.judging import Check, invariant


def answer_is(answer: Any, right: float, tolerance: float, hint: str) -> Check | None:
    """A learner's number against the right one, within a relative tolerance; None while the stub `...` still stands."""
    if answer is ...:
        return None
    try:
        off = abs(float(answer) - right) / max(abs(right), 1e-12)
    except (TypeError, ValueError):
        return invariant(False, "your answer", f"{answer!r} is not a number", hint)
    return invariant(
        off <= tolerance, "your answer", f"{float(answer):,.6g}" + (" is right" if off <= tolerance else ""), hint
    )


def choice_is(answer: Any, right: bool | str | None, hint: str) -> Check | None:
    """A learner's choice (a name, True or False) against the right one; None while the stub `...` still stands.

    right: None where the samples of this run can't tell, which any choice survives.
    """
    if answer is ...:
        return None
    if right is None and isinstance(answer, bool | str):
        return invariant(True, "your answer", f"{answer!r} stands: so few samples can't tell which is right", hint)
    ok = right is not None and type(answer) is type(right) and answer == right
    return invariant(ok, "your answer", f"{answer!r}" + (" is right" if ok else ""), hint)
