"""The main figures of a run, read from the ledger lines that this run wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labkit.ledger import SPEEDUP, Kind, Ledger, Measurement
from labkit.ops.records import Score
from labkit.ops.text import number, size
from labkit.profiles import Profile

TELLING: tuple[Kind, ...] = (
    "accuracy",
    "perplexity",
    "throughput",
    "latency",
    "size",
    "quantize",
    "memory",
    "prediction",
)
SHOWN = 4  # variants in one line of the table


def run_headlines(ledger: Ledger, run: str, origins: Mapping[str, str] | None = None) -> list[Measurement]:
    """The newest headline lines of one run, lab by lab, whichever ended first; raises DataError for a damaged ledger.

    origins: labs that were left alone, and the earlier run that each one's figures are from.
    """
    found = ledger.headlines(run=run)
    for lab, earlier in (origins or {}).items():
        found += ledger.headlines(run=earlier, lab=lab)
    return sorted(found, key=lambda line: line.lab)


def scores(measured: Sequence[Measurement], profile: Profile) -> dict[str, Score]:
    """Variant to score: the profile's main task where it was measured, else the first accuracy task that was.

    Of one backend only, that of the first line: two backends differ by more than two variants do.
    """
    accuracies = [m for m in measured if m.kind == "accuracy"]
    tasks = [m.task for m in accuracies]
    if not tasks:
        return {}
    task = profile.main_task.name if profile.main_task.name in tasks else tasks[0]
    of_task = [m for m in accuracies if m.task == task]
    return {m.variant: Score(m.value, m.stderr, m.n, task) for m in of_task if m.backend == of_task[0].backend}


def lab_figure(measured: Sequence[Measurement], lab: str, profile: Profile) -> str:
    """One lab's most telling headline in one line: its metric, then the value of each variant."""
    own = [m for m in measured if m.lab == lab]
    for kind in TELLING:
        of_kind = [m for m in own if m.kind == kind]
        if of_kind:
            main = [m for m in of_kind if m.task == profile.main_task.name] or of_kind
            first = main[0]
            group = [m for m in main if (m.task, m.metric) == (first.task, first.metric)]
            ratios = [m for m in of_kind if m.metric == SPEEDUP and first.metric != SPEEDUP]
            return "; ".join(_told(some) for some in (group, ratios) if some)
    return ""


def _told(group: Sequence[Measurement]) -> str:
    """One metric of several variants, as `metric: variant value, ...`."""
    values = [f"{m.variant} {_value(m)}" for m in group[:SHOWN]] + (["..."] if len(group) > SHOWN else [])
    return f"{group[0].metric}: {', '.join(values)}"


def _value(m: Measurement) -> str:
    if m.unit in ("B", "byte", "bytes") or m.metric.endswith("bytes"):
        return size(m.value) or "0 B"
    return number(m.value)
