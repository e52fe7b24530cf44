"""From evidence to a model card in the hub's form. Nothing in it is typed by hand; what was not measured, it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

from labkit.card.evidence import Evidence, Score
from labkit.compare.recovery import LEVEL
from labkit.engine import NO_INT8_ON_BLACKWELL
from labkit.estimates import Z_95
from labkit.hardware import HARDWARE, TABLE, Verdict

if TYPE_CHECKING:
    from labkit.ledger import Measurement

CARD = "README.md"
UNITS = {"share": "", "perplexity": "", "tok/s": "tokens/s", "req/s": "requests/s", "×": "times the base model"}
PLAIN = "bf16"


def model_card(evidence: Evidence, target: str = "") -> str:
    """The card as text: metadata for the hub, then what a user must know. target: where the checkpoint is fetched."""
    from huggingface_hub import ModelCard

    sections = [
        ("", _summary(evidence)),
        ("How it was made", _making(evidence)),
        ("Accuracy", _accuracy(evidence)),
        ("Speed", _speed(evidence)),
        ("How to serve it", _serving(evidence, target)),
        ("Limits", _limits(evidence)),
        ("Versions", _versions(evidence)),
    ]
    body = "\n\n".join(
        (f"## {heading}\n\n" if heading else "") + "\n\n".join(paragraphs) for heading, paragraphs in sections
    )
    text = f"---\n{_metadata(evidence).to_yaml()}\n---\n\n# {name_of(evidence)}\n\n{body}\n"
    return str(ModelCard(text))


def name_of(evidence: Evidence) -> str:
    """What the model is called in its card."""
    return f"{evidence.model}-{evidence.variant}" if evidence.variant else evidence.model


def _metadata(evidence: Evidence) -> Any:
    from huggingface_hub import ModelCardData

    manifest = evidence.manifest
    base, calibration = manifest.get("base_model") or None, manifest.get("calibration") or {}
    source = str(calibration.get("source", ""))
    return ModelCardData(
        base_model=base,
        base_model_relation="quantized" if base else None,
        license=manifest.get("license") or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[*sorted({"compressed-tensors", "llm-compressor", *_schemes(evidence)} - {PLAIN}), "vllm"],
        datasets=[source] if "/" in source and not source.startswith("/") else None,
        model_name=name_of(evidence),
        eval_results=[_result(score.measured) for score in evidence.scores] or None,
    )


def _result(line: Measurement) -> Any:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="text-generation",
        dataset_type=line.task,
        dataset_name=line.task,
        metric_type=line.metric,
        metric_value=line.value,
    )


def _schemes(evidence: Evidence) -> list[str]:
    return [scheme for scheme, _ in Counter(evidence.inspection.schemes.values()).most_common()]


def _scheme(evidence: Evidence) -> str:
    """The scheme that most quantized layers have."""
    return next((scheme for scheme in _schemes(evidence) if scheme != PLAIN), PLAIN)


def _summary(evidence: Evidence) -> Iterator[str]:
    found, base = evidence.inspection, evidence.manifest.get("base_model") or f"`{evidence.model}`"
    counted = Counter(found.schemes.values())
    scheme = _scheme(evidence)
    yield f"{base}, quantized to `{scheme}`." if scheme != PLAIN else f"{base}, in 16 bits."
    rows = [["Linear layers", ", ".join(f"{n} in `{scheme}`" for scheme, n in counted.most_common())]]
    if found.kv_cache:
        rows.append(["KV cache", f"`{found.kv_cache}`, with scales in the checkpoint"])
    rows.append(["Size", _sizes(evidence)])
    rows.append(
        ["Licence", evidence.manifest.get("license") or "that of the base model, which its files here don't name"]
    )
    yield _table(["", ""], rows)


def _sizes(evidence: Evidence) -> str:
    size = evidence.inspection.total_bytes
    if evidence.baseline_bytes is None:
        return f"{size:,} bytes of tensors; the base model's were not measured here"
    share = size / evidence.baseline_bytes
    return f"{size:,} bytes of tensors, {share:.1%} of the base model's {evidence.baseline_bytes:,.0f}"


def _making(evidence: Evidence) -> Iterator[str]:
    manifest, seconds = evidence.manifest, evidence.quantized.get("seconds")
    recipe, calibration = str(manifest.get("recipe") or ""), manifest.get("calibration")
    if recipe:
        yield f"By llm-compressor, with this recipe:\n\n```yaml\n{recipe.strip()}\n```"
    else:
        yield "There is no record of how it was made."
    if calibration:
        yield (
            f"Calibrated on {calibration['rows']:,} rows of {calibration['source']} "
            f"({calibration['tokens']:,} tokens, at most {calibration['max_length']:,} a row, "
            f"seed {calibration['seed']}). SHA-256 of the token ids and settings: `{calibration['fingerprint']}`."
        )
    else:
        yield ("No calibration data was used." if "calibration" in manifest else "Nor of calibration data.")
    if seconds:
        peak = evidence.quantized.get("peak_bytes")
        memory = f", with {peak.value:,.0f} bytes of memory at most" if peak else ""
        yield f"That took {seconds.value:.1f} s{memory}, on {seconds.machine}."


def _accuracy(evidence: Evidence) -> Iterator[str]:
    if not evidence.scores:
        yield "**Not measured.** Nothing in this workspace says what quantizing cost in accuracy."
        return
    header = ["task", "metric", "this model", "base model", f"recovery ({LEVEL:.0%} interval)", "samples"]
    yield f"By lm-eval; in brackets {LEVEL:.0%} intervals."
    yield _table(header, [_score_row(score) for score in evidence.scores])
    yield "What moves these scores:"
    yield "\n".join(f"- {score.measured.task}: {_settings(score.measured)}" for score in evidence.scores)


def _score_row(score: Score) -> list[str]:
    recovery = score.recovery
    kept = (
        f"{recovery.ratio:.2%} ({recovery.ci_low:.2%} to {recovery.ci_high:.2%}): {recovery.verdict}"
        if recovery
        else "not compared row by row"
    )
    line = score.measured
    base = _with_interval(score.baseline) if score.baseline else "not measured"
    return [line.task, line.metric, _with_interval(line), base, kept, f"{line.n or 0:,}"]


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
    shown |= {f"generation.{key}": value for key, value in dict(line.settings.get("generation") or {}).items()}
    return ", ".join(f"{key} `{value}`" for key, value in shown.items())


def _speed(evidence: Evidence) -> Iterator[str]:
    if not evidence.speeds:
        yield "**Not measured** on this checkpoint."
        return
    yield "Median over repeats, in brackets the smallest and largest."
    rows = []
    for line in evidence.speeds:
        spread = f" ({line.ci_low:,.1f} to {line.ci_high:,.1f})" if line.ci_low is not None else ""
        value = f"{line.value:,.1f}{spread} {UNITS.get(line.unit, line.unit)}".strip()
        rows.append([line.metric, value, _settings(line), line.machine])
    yield _table(["figure", "measured", "load", "machine"], rows)


def _serving(evidence: Evidence, target: str) -> Iterator[str]:
    folder = name_of(evidence)
    fetch = f"labkit fetch {target} {folder}\n" if target else ""
    yield f"```sh\n{fetch}vllm serve {folder}\n```"
    scheme, lines = _scheme(evidence), []
    if scheme == "int8-w8a8":
        yield f"On a Blackwell GPU set `VLLM_DISABLED_KERNELS={NO_INT8_ON_BLACKWELL}` for it (vLLM 0.32)."
    for verdict in get_args(Verdict)[:-1]:  # the last, "not covered", says nothing of vLLM
        rows = [row for row in TABLE if scheme in row.schemes and row.verdict == verdict]
        if names := [HARDWARE[name] for row in rows for name in row.hardware]:
            lines.append(f"- {verdict}: {', '.join(names)}")
    if lines:
        yield f"What vLLM does with `{scheme}`, with the build made for that hardware:"
        yield "\n".join(lines)


def _limits(evidence: Evidence) -> Iterator[str]:
    manifest, plain = evidence.manifest, [n for n, s in evidence.inspection.schemes.items() if s == PLAIN]
    tasks = ", ".join(dict.fromkeys(score.measured.task for score in evidence.scores))
    limits = [
        f"Scored on {tasks} only: other tasks, other languages and safety were not evaluated."
        if tasks
        else "Not evaluated: nothing is known of what it answers.",
        *_undecided(evidence),
    ]
    if plain and len(plain) < len(evidence.inspection.layers):
        limits.append(f"{', '.join(f'`{name}`' for name in plain)} stayed in 16 bits.")
    if fallbacks := manifest.get("gptq_fallbacks"):
        limits.append(f"GPTQ gave up on {len(fallbacks)} layers and rounded them to nearest: {', '.join(fallbacks)}.")
    limits += [f"Config and tensors disagree: {mismatch}." for mismatch in evidence.inspection.mismatches]
    if not evidence.speeds:
        limits.append("No speed was measured: smaller is not always faster, it depends on the hardware.")
    if evidence.older:
        limits.append(
            f"{evidence.older} older measurements are left out: the checkpoint was made again after they were taken."
        )
    yield "\n".join(f"- {limit}" for limit in limits)


def _undecided(evidence: Evidence) -> Iterator[str]:
    for score in evidence.scores:
        if score.recovery is None:
            yield f"{score.measured.task}: not compared with the base model row by row."
        elif score.recovery.verdict != "recovered":
            yield f"{score.measured.task}: {score.recovery.sentence()}"


def _versions(evidence: Evidence) -> Iterator[str]:
    versions = evidence.manifest.get("versions") or {}
    yield ", ".join(f"{name} {version}" for name, version in versions.items()) or "There is no record of them."


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
