"""Of pipelines: their graph, and how a run of them ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labkit.checks.judging import Check, expectation, invariant

JUDGE = "compare"


def judge_waits_for_all(after: Mapping[str, Sequence[str]]) -> Check:
    """The comparison is last, and waits for every other task, if not directly. after: each task's predecessors."""
    seen: set[str] = set()
    ahead = list(after.get(JUDGE, ()))
    while ahead:
        task = ahead.pop()
        seen.add(task)
        ahead += [other for other in after.get(task, ()) if other not in seen]
    missed = sorted(after.keys() - seen - {JUDGE})
    return invariant(
        JUDGE in after and not missed,
        "the compiled graph",
        f"{JUDGE} waits for all {len(after) - 1} other tasks" if not missed else f"nobody judges {', '.join(missed)}",
        f"let {JUDGE} take the output of every task that must have passed",
    )


def every_step_worked(failed: Sequence[str], said: str, compared: int) -> Check:
    """Whatever the verdict on the models, every step did its work. compared: how many rows the comparison has."""
    broken = [task for task in failed if task != JUDGE or not compared]
    return invariant(
        not broken,
        "how each step ended",
        f"{', '.join(broken)} failed: {said}" if broken else "each did its work",
        "read the pipeline's log; run the step that failed alone, at the shell",
    )


def is_green(failed: Sequence[str], said: str) -> Check:
    """Every variant recovered, and so the pipeline passed."""
    return expectation(
        not failed,
        "the verdict of the pipeline",
        f"red: {said}" if failed else "green: every variant recovered on every task",
        "the embedded model recovers with these schemes: was the recipe, the store or the profile changed?",
    )


def is_red(failed: Sequence[str], said: str) -> Check:
    """A variant lost, and so the pipeline failed, at the comparison and with the reason."""
    return expectation(
        tuple(failed) == (JUDGE,) and "Lost" in said,
        "the verdict of the pipeline",
        "red, and it says which variant lost" if failed else "green, although a variant lost",
        "the comparison must end with an exit code above 0 when a variant did not recover",
    )


def as_good_as_alone(alone: float, together: float) -> Check:
    """Several processes made as good a checkpoint as one. Both: nats a token from the base model."""
    return invariant(
        abs(together - alone) <= 0.25 * alone,
        "how far each checkpoint's answers are from the base model's",
        f"{alone:.4g} nats a token by one process, {together:.4g} by several",
        "calibrate with one process: unset LABKIT_DATA_PARALLEL",
    )
