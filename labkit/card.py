"""What this workspace measured of its checkpoints (`gather`), told as a model card or as a row of the scorecard.

A line of the ledger counts only if it was measured after the checkpoint was made: an older one is of another checkpoint
of the same name. Nothing is typed by hand; what was not measured, the card says, and the scorecard shows a dash.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from labkit.behaviour import Z_95
from labkit.checkpoint import Inspection, inspect, short_name
from labkit.compare import LEVEL, Recovery, compare_evaluations
from labkit.engine import NO_INT8_ON_BLACKWELL
from labkit.evaluate import Evaluation, load_evaluation
from labkit.figures import Figure, tradeoff
from labkit.files import MANIFEST, read_manifest
from labkit.ledger import SPEEDUP, Measurement
from labkit.matrix import HARDWARE, TABLE, Verdict
from labkit.profiles import BASELINE
from labkit.store import Workspace

CARD = "README.md"
UNITS = {"tok/s": "tokens/s", "req/s": "requests/s", "×": "times the base model"}
PLAIN = "bf16"


@dataclass(frozen=True)
class Score:
    """A task's headline figure. baseline: the base model's under the same settings. recovery: row by row, if both
    evaluations' samples are still there."""

    measured: Measurement
    baseline: Measurement | None = None
    recovery: Recovery | None = None


@dataclass(frozen=True)
class Evidence:
    """What is known of one checkpoint.

    variant: "" if labkit did not make it. baseline_bytes: of the base model's tensors, if that was measured. quantized:
    what making it took, by metric. speeds: throughput and latency. older: how many headline lines are left out because
    the checkpoint was made again since.
    """

    model: str
    variant: str
    manifest: Mapping[str, Any]
    inspection: Inspection
    baseline_bytes: float | None
    quantized: Mapping[str, Measurement]
    scores: tuple[Score, ...]
    speeds: tuple[Measurement, ...]
    older: int

    @property
    def name(self) -> str:
        """What the model is called in its card."""
        return f"{self.model}-{self.variant}" if self.variant else self.model

    @property
    def schemes(self) -> dict[str, int]:
        """How many layers have each scheme, the most frequent first."""
        return dict(Counter(self.inspection.schemes.values()).most_common())

    @property
    def scheme(self) -> str:
        """The scheme that most quantized layers have."""
        return next((scheme for scheme in self.schemes if scheme != PLAIN), PLAIN)


def gather(folder: Path, workspace: Workspace) -> Evidence:
    """Collects what this workspace knows of the checkpoint in `folder`.

    Of a folder that labkit did not make that is its tensors only. Raises CheckpointError if it is no checkpoint.
    """
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else {}
    model, variant = str(manifest.get("base") or short_name(str(folder))), str(manifest.get("variant") or "")
    own = workspace.ledger.headlines(model=model, variant=variant) if variant else []
    base = workspace.ledger.newest(model=model, variant=BASELINE) if variant else []  # of whatever purpose
    made = max((line.time for line in own if line.kind == "quantize" and line.metric == "seconds"), default="")
    fresh = [line for line in own if line.time >= made or line.kind in ("quantize", "size")]
    records = [path for path in sorted(workspace.results.glob("*/*.jsonl")) if path.with_suffix(".json").is_file()]
    saved = [load_evaluation(path) for path in records]
    return Evidence(
        model,
        variant,
        manifest,
        inspect(folder),
        next((line.value for line in base if line.metric == "bytes"), None),
        {line.metric: line for line in fresh if line.kind == "quantize"},
        tuple(_score(line, base, saved) for line in fresh if line.kind in ("accuracy", "perplexity")),
        tuple(line for line in fresh if line.kind in ("throughput", "latency")),
        len(own) - len(fresh),
    )


def _score(line: Measurement, base: Sequence[Measurement], saved: Sequence[Evaluation]) -> Score:
    same = [b for b in base if (b.task, b.metric, b.settings) == (line.task, line.metric, line.settings)]
    if not same:
        return Score(line)
    known = [((e.request.variant, e.request.task.name, e.value, e.stderr, e.n, e.settings), e) for e in saved]
    found = [
        next((e for facts, e in known if facts == (m.variant, m.task, m.value, m.stderr, m.n, m.settings)), None)
        for m in (same[-1], line)
    ]
    theirs, mine = found
    if theirs and mine and theirs.versions == mine.versions:
        return Score(line, same[-1], compare_evaluations(theirs, mine))
    return Score(line, same[-1])


# --- the model card ---------------------------------------------------------------------------------------------------


def model_card(evidence: Evidence, target: str = "") -> str:
    """The card as text: metadata for the hub, then what a user must know. target: where the checkpoint is fetched."""
    from huggingface_hub import ModelCard

    versions = evidence.manifest.get("versions") or {}
    sections = {
        f"# {evidence.name}": _summary(evidence),
        "## How it was made": _making(evidence),
        "## Accuracy": _accuracy(evidence.scores),
        "## Speed": _speed(evidence.speeds),
        "## How to serve it": _serving(evidence, target),
        "## Limits": [_bullets(_limits(evidence))],
        "## Versions": [", ".join(f"{name} {v}" for name, v in versions.items()) or "There is no record of them."],
    }
    body = "\n\n".join("\n\n".join([heading, *paragraphs]) for heading, paragraphs in sections.items())
    return str(ModelCard(f"---\n{_metadata(evidence).to_yaml()}\n---\n\n{body}\n"))


def _metadata(evidence: Evidence) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    manifest, lines = evidence.manifest, [score.measured for score in evidence.scores]
    source = str((manifest.get("calibration") or {}).get("source", ""))
    results = [EvalResult("text-generation", line.task, line.task, line.metric, line.value) for line in lines]
    return ModelCardData(
        base_model=manifest.get("base_model") or None,
        base_model_relation="quantized" if manifest.get("base_model") else None,
        license=manifest.get("license") or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[*sorted({"compressed-tensors", "llm-compressor", *evidence.schemes} - {PLAIN}), "vllm"],
        datasets=[source] if "/" in source and not source.startswith("/") else None,
        model_name=evidence.name,
        eval_results=results or None,
    )


def _summary(evidence: Evidence) -> Iterator[str]:
    found, manifest, whole = evidence.inspection, evidence.manifest, evidence.baseline_bytes
    base = manifest.get("base_model") or f"`{evidence.model}`"
    yield f"{base}, in 16 bits." if evidence.scheme == PLAIN else f"{base}, quantized to `{evidence.scheme}`."
    beside = "; the base model's were not measured"
    if whole:
        beside = f", {found.total_bytes / whole:.1%} of the base model's {whole:,.0f}"
    rows = [["Linear layers", ", ".join(f"{n} in `{scheme}`" for scheme, n in evidence.schemes.items())]]
    rows += [["KV cache", f"`{found.kv_cache}`, with scales in the checkpoint"]] if found.kv_cache else []
    licence = manifest.get("license") or "that of the base model, which its files here don't name"
    yield _table(["", ""], [*rows, ["Size", f"{found.total_bytes:,} bytes of tensors{beside}"], ["Licence", licence]])


def _making(evidence: Evidence) -> Iterator[str]:
    manifest, seconds = evidence.manifest, evidence.quantized.get("seconds")
    recipe = str(manifest.get("recipe") or "").strip()
    said = f"By llm-compressor, with this recipe:\n\n```yaml\n{recipe}\n```"
    yield said if recipe else "There is no record of how it was made."
    if calibration := manifest.get("calibration"):
        yield (
            f"Calibrated on {calibration['rows']:,} rows of {calibration['source']} "
            f"({calibration['tokens']:,} tokens, at most {calibration['max_length']:,} a row, "
            f"seed {calibration['seed']}). SHA-256 of the token ids and settings: `{calibration['fingerprint']}`."
        )
    else:
        yield "No calibration data was used." if "calibration" in manifest else "Nor of calibration data."
    if seconds:
        peak = evidence.quantized.get("peak_bytes")
        memory = f", with {peak.value:,.0f} bytes of memory at most" if peak else ""
        yield f"That took {seconds.value:.1f} s{memory}, on {seconds.machine}."


def _accuracy(scores: Sequence[Score]) -> Iterator[str]:
    if not scores:
        yield "**Not measured.** Nothing in this workspace says what quantizing cost in accuracy."
        return
    yield f"By lm-eval; in brackets {LEVEL:.0%} intervals."
    rows = []
    for score in scores:
        line, r = score.measured, score.recovery
        base = _with_interval(score.baseline) if score.baseline else "not measured"
        kept = f"{r.ratio:.2%} ({r.ci_low:.2%} to {r.ci_high:.2%}): {r.verdict}" if r else "not compared row by row"
        rows.append([line.task, line.metric, _with_interval(line), base, kept, f"{line.n or 0:,}"])
    yield _table(["task", "metric", "this model", "base model", f"recovery ({LEVEL:.0%} interval)", "samples"], rows)
    yield "What moves these scores:"
    yield _bullets(f"{score.measured.task}: {_settings(score.measured)}" for score in scores)


def _with_interval(line: Measurement) -> str:
    """A score and its interval; a share's stays between 0 and 1."""
    if line.stderr is None:
        return f"{line.value:.3f}"
    low, high = line.value - Z_95 * line.stderr, line.value + Z_95 * line.stderr
    if line.unit == "share":
        low, high = max(0.0, low), min(1.0, high)
    return f"{line.value:.3f} ({low:.3f} to {high:.3f})"


def _settings(line: Measurement) -> str:
    shown = {key: value for key, value in line.settings.items() if key not in ("task", "generation")}
    shown |= {f"generation.{key}": value for key, value in (line.settings.get("generation") or {}).items()}
    return ", ".join(f"{key} `{value}`" for key, value in shown.items())


def _speed(speeds: Sequence[Measurement]) -> Iterator[str]:
    if not speeds:
        yield "**Not measured** on this checkpoint."
        return
    yield "Median over repeats, in brackets the smallest and largest."
    rows = []
    for line in speeds:
        spread = f" ({line.ci_low:,.1f} to {line.ci_high:,.1f})" if line.ci_low is not None else ""
        value = f"{line.value:,.1f}{spread} {UNITS.get(line.unit, line.unit)}".strip()
        rows.append([line.metric, value, _settings(line), line.machine])
    yield _table(["figure", "measured", "load", "machine"], rows)


def _serving(evidence: Evidence, target: str) -> Iterator[str]:
    scheme, fetch = evidence.scheme, f"labkit fetch {target} {evidence.name}\n" if target else ""
    yield f"```sh\n{fetch}vllm serve {evidence.name}\n```"
    if scheme == "int8-w8a8":
        yield f"On a Blackwell GPU set `VLLM_DISABLED_KERNELS={NO_INT8_ON_BLACKWELL}` for it (vLLM 0.32)."
    runs: dict[str, list[str]] = {verdict: [] for verdict in get_args(Verdict)}
    for row in TABLE:
        runs[row.verdict] += [HARDWARE[name] for name in row.hardware] if scheme in row.schemes else []
    del runs["not covered"]  # which says nothing of vLLM
    if any(runs.values()):
        yield f"What vLLM does with `{scheme}`, with the build made for that hardware:"
        yield _bullets(f"{verdict}: {', '.join(names)}" for verdict, names in runs.items() if names)


def _limits(evidence: Evidence) -> Iterator[str]:
    tasks = ", ".join(dict.fromkeys(score.measured.task for score in evidence.scores))
    if tasks:
        yield f"Scored on {tasks} only: other tasks, other languages and safety were not evaluated."
    else:
        yield "Not evaluated: nothing is known of what it answers."
    for score in evidence.scores:
        if score.recovery is None:
            yield f"{score.measured.task}: not compared with the base model row by row."
        elif score.recovery.verdict != "recovered":
            yield f"{score.measured.task}: {score.recovery.sentence()}"
    plain = [f"`{name}`" for name, scheme in evidence.inspection.schemes.items() if scheme == PLAIN]
    if 0 < len(plain) < len(evidence.inspection.layers):
        yield f"{', '.join(plain)} stayed in 16 bits."
    if fallbacks := evidence.manifest.get("gptq_fallbacks"):
        yield f"GPTQ gave up on {len(fallbacks)} layers and rounded them to nearest: {', '.join(fallbacks)}."
    for mismatch in evidence.inspection.mismatches:
        yield f"Config and tensors disagree: {mismatch}."
    if not evidence.speeds:
        yield "No speed was measured: smaller is not always faster, it depends on the hardware."
    if evidence.older:
        yield f"{evidence.older} older measurements are left out: the checkpoint was made again since."


def _bullets(lines: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


# --- the scorecard ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One row. scheme: that of most of its layers. bits_per_weight: 8 × its tensors' bytes over its parameters.

    accuracy: on `task`, n rows, in [0, 1]; interval: half of its 95% interval. verdict: of the recovery, "baseline" for
    the base model, "" if the two were not compared. output_tok_per_s: at the lab's largest load; speedup: over the
    baseline's. None: not measured.
    """

    model: str
    variant: str
    scheme: str
    bytes: int
    bits_per_weight: float
    task: str
    accuracy: float | None
    interval: float | None
    n: int | None
    recovery: float | None
    verdict: str
    output_tok_per_s: float | None
    speedup: float | None
    quantize_seconds: float | None

    def cells(self) -> dict[str, str]:
        """The row as text, a dash where nothing was measured; the names are the table's header."""

        def shown(value: float | None, form: str) -> str:
            return "–" if value is None else form.format(value)

        return {
            "model": self.model,
            "variant": self.variant,
            "MB": f"{self.bytes / 1e6:,.1f}",
            "bits per weight": f"{self.bits_per_weight:.2f}",
            "accuracy ± 95%": shown(self.accuracy, "{:.3f}")
            + ("" if self.interval is None else f" ± {self.interval:.3f}"),
            "n": shown(self.n, "{:,}"),
            "recovery": shown(self.recovery, "{:.1%}"),
            "verdict": self.verdict or "–",
            "output tok/s": shown(self.output_tok_per_s, "{:,.0f}" if (self.output_tok_per_s or 0) >= 10 else "{:.1f}"),
            "speed-up": shown(self.speedup, "{:.2f}×"),
            "quantized in": shown(self.quantize_seconds, "{:,.1f} s"),
        }


def scorecard(workspace: Workspace, task: str = "") -> list[Variant]:
    """A row for each checkpoint of the workspace, model by model, those that were scored first, then by size.

    task: whose accuracy is shown where it was measured, else the first that was. Raises CheckpointError for a folder
    that is no checkpoint any more.
    """
    folders = sorted(path.parent for path in workspace.checkpoints.glob(f"*/{MANIFEST}"))
    found = [_variant(gather(folder, workspace), task) for folder in folders]
    measured = Counter(row.model for row in found for figure in (row.accuracy, row.speedup) if figure is not None)

    def place(row: Variant) -> tuple[object, ...]:
        unmeasured = row.accuracy is None and row.output_tok_per_s is None
        return -measured[row.model], row.model, row.variant != BASELINE, unmeasured, row.bytes, row.variant

    return sorted(found, key=place)


def _variant(evidence: Evidence, task: str) -> Variant:
    scores = [score for score in evidence.scores if score.measured.kind == "accuracy"]
    scores.sort(key=lambda score: score.measured.task != task)
    measured, recovery = (scores[0].measured, scores[0].recovery) if scores else (None, None)
    base, found = evidence.variant == BASELINE, evidence.inspection
    speeds = {line.metric: line.value for line in evidence.speeds}  # the newest of each
    seconds = evidence.quantized.get("seconds")
    return Variant(
        model=evidence.model,
        variant=evidence.variant,
        scheme=next(iter(evidence.schemes), ""),
        bytes=found.total_bytes,
        bits_per_weight=8 * found.total_bytes / found.parameters,
        task=measured.task if measured else "",
        accuracy=measured.value if measured else None,
        interval=Z_95 * measured.stderr if measured and measured.stderr is not None else None,
        n=measured.n if measured else None,
        recovery=recovery.ratio if recovery and not base and not math.isnan(recovery.ratio) else None,
        verdict="baseline" if base else recovery.verdict if recovery else "",
        output_tok_per_s=speeds.get("output_tok_per_s"),
        speedup=speeds.get(SPEEDUP),
        quantize_seconds=seconds.value if seconds else None,
    )


def picture(rows: Sequence[Variant]) -> Figure | None:
    """Accuracy against bits per weight, with the speed-up beside each point; None if nothing was evaluated.

    Of the model with most scored variants. Where another model stands in for its speed, as the labs' large random one
    does for the embedded one, the speed-ups are that model's under the same scheme, and the description says so.
    """
    scored = [row for row in rows if row.accuracy is not None]
    if not scored:
        return None
    (model, _), *_ = Counter(row.model for row in scored).most_common()
    chosen = [row for row in scored if row.model == model]
    speed, source = speedups(rows, model)
    description = f"Accuracy of {model} on {chosen[0].task} against bits per weight, with 95% intervals."
    if best := [row for row in chosen if row.verdict == "recovered"]:
        least = min(best, key=lambda row: row.bits_per_weight)
        description += f" Smallest that recovered: {least.variant}, {least.bits_per_weight:.1f} bits."
    if speed:
        description += f" The numbers are speed-ups{'' if source == model else f', measured on {source}'}."
    points = {
        row.variant: (row.bits_per_weight, row.accuracy or 0.0, row.interval or 0.0, speed.get(row.scheme))
        for row in chosen
    }
    return tradeoff(points, next((row.accuracy for row in chosen if row.variant == BASELINE), None), description)


def speedups(rows: Sequence[Variant], model: str) -> tuple[dict[str, float], str]:
    """Speed-ups over the baseline by scheme, and the model that they were measured on: `model`, else the one that
    stands in for its speed; ({}, "") if there are none."""
    measured = [row for row in rows if row.speedup]
    source = next((row.model for row in sorted(measured, key=lambda row: row.model != model)), "")
    return {row.scheme: row.speedup for row in measured if row.model == source and row.speedup}, source
