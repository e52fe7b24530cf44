"""What labs 04 and 06 measure, and how it goes into the ledger: speeds with their repeats, and simulated schemes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from labkit import behaviour, checkpoint, memory, notebook, quantize, serve
from labkit import evaluate as evaluation
from labkit.engine import number_type
from labkit.errors import DataError
from labkit.evaluate import Request
from labkit.ledger import SPEEDUP, Measurement, Purpose
from labkit.process import children_to_log
from labkit.serve import Alone, Load, Loaded, Repeated, Server
from labkit.zeroquant import Scored

if TYPE_CHECKING:
    from pathlib import Path

    from labkit.lab import Lab
    from labkit.simulation import Simulation
    from labkit.store import Context

SIMULATED = "simulated"  # the backend of a scheme that is put on a model in memory
RATES = {"output_tok_per_s": "tok/s", "request_per_s": "req/s"}
TIMES = ("ttft_ms", "ttft_p99_ms", "itl_ms", "itl_p99_ms")


# --- speed ------------------------------------------------------------------------------------------------------------


def served(lab: Lab, folder: Path, *, compiled: bool = True, options: Sequence[str] = ()) -> Server:
    """A server of a checkpoint; see `labkit.serve.serve`. Ends with `stop()` or its `with` block."""
    with notebook.waiting(f"a server of {folder.name}"):
        log = lab.context.log(f"server-{folder.name}")
        server = serve.serve(folder, _for_speed(lab, compiled), log=log, options=options)
    told = f"{server.model} is ready after {server.ready_seconds:.0f} s at {server.url}, in {server.dtype}"
    lab.show(f"{told} where nothing is quantized (log: {server.log}).")
    return server


def put_load(
    lab: Lab, server: Server, tokenizer: Path, loads: Sequence[Load], repeats: int = 1
) -> dict[Load, list[Loaded]]:
    """Puts each load on the server, all of them `repeats` times over, after a warm-up that does not count."""
    warm_up = replace(max(loads, key=lambda load: load.concurrency), input_tokens=8, output_tokens=2)
    plan = [warm_up, *(load for _ in range(repeats) for load in loads)]
    with notebook.bar(len(plan), f"load on {server.model}", "load") as show:
        log = lab.context.log(f"load-{server.model}")
        _, *found = serve.put_load(server, plan, lab.context, tokenizer=tokenizer, log=log, on_tick=show)
    return {load: [one for one in found if one.load == load] for load in loads}


def alone(lab: Lab, folder: Path, seconds: float) -> Alone:
    """An engine without a server, for about so many seconds: its memory, its decode, with the most and with the
    fewest requests at once first, and its prefill; see `labkit.serve.measure_alone`.
    """
    plan = lab.profile.serving
    with notebook.waiting(f"{folder.name} without a server"):
        return serve.measure_alone(
            folder,
            list(dict.fromkeys((plan.concurrencies[-1], *plan.concurrencies))),
            plan.prefill_tokens,
            _for_speed(lab, plan.compiled),
            seconds=seconds,
            repeats=plan.repeats,
            log=lab.context.log(f"alone-{folder.name}"),
        )


def _for_speed(lab: Lab, compiled: bool) -> Context:
    engine = lab.profile.engine
    engine = serve.compiling(engine) if compiled else replace(engine, enforce_eager=True)
    return replace(lab.context, profile=replace(lab.profile, engine=engine))


def record_loads(lab: Lab, variant: str, runs: Mapping[Load, Sequence[Loaded]], headline: Load) -> None:
    """Every figure of a variant's loads goes into the ledger: those of `headline` as such, the rest as sweep."""
    for load, results in runs.items():
        for metric in (*RATES, *(TIMES if load.output_tokens > 1 else TIMES[:2])):  # after one token no other comes
            record_speed(lab, variant, metric, repeated(results, metric), load=load, headline=load == headline)


def repeated(results: Sequence[Loaded], metric: str) -> Repeated:
    """The figure `metric` of what one load gave each time it was repeated."""
    return Repeated.of([float(getattr(result, metric)) for result in results], all(r.compiled for r in results))


def record_alone(lab: Lab, variant: str, alone: Alone) -> None:
    """What an engine without a server measured goes into the ledger, as sweep."""
    how: dict[str, Any] = {"served": False, "dtype": alone.dtype}
    for count in alone.step_ms:
        record_speed(lab, variant, "decode_tok_per_s", alone.decode_tok_per_s(count), **how, concurrency=count)
    if read := alone.prefill_tok_per_s:
        record_speed(lab, variant, "prefill_tok_per_s", read, **how, input_tokens=lab.profile.serving.prefill_tokens)
    more: dict[str, Any] = {"unit": "bytes", "purpose": "sweep", "backend": "vllm", "settings": how}
    lab.record("memory", "loaded_bytes", alone.loaded_bytes, variant=variant, **more)


def record_speed(
    lab: Lab,
    variant: str,
    metric: str,
    figure: Repeated,
    *,
    load: Load | None = None,
    headline: bool = False,
    **settings: Any,
) -> None:
    """One figure with its repeats, and all that moves a speed. load: the server's, None for an engine without one."""
    if load:
        dtype = number_type(lab.profile.engine, lab.checkpoint(variant))
        settings = {**asdict(load), "served": True, "dtype": dtype, **settings}
    lab.record(
        "latency" if metric in TIMES else "throughput",
        metric,
        figure.median,
        variant=variant,
        backend="vllm",
        ci_low=figure.low,
        ci_high=figure.high,
        n=(load.requests if load else 1) * figure.repeats,
        unit="×" if metric == SPEEDUP else "ms" if metric in TIMES else RATES.get(metric, "tok/s"),
        settings=settings | {"repeats": figure.repeats, "compiled": figure.compiled, "seed": lab.profile.seed},
        purpose="headline" if headline else "sweep",
    )


# --- simulated schemes ------------------------------------------------------------------------------------------------


def held_out(lab: Lab) -> dict[str, list[behaviour.Row]]:
    """The profile's held-out texts by name. One that can't be had here is left out, and said; not all may be."""
    tokenizer, found = checkpoint.load_tokenizer(lab.base), {}
    missing: list[DataError] = []
    for text in lab.profile.simulation.texts:
        try:
            found[text.name] = behaviour.held_out_rows(text, tokenizer, data=lab.context.data, seed=lab.profile.seed)
        except DataError as error:
            missing.append(error)
            print(f"{text.name} is left out: {error.what}")
    if not found:
        raise missing[0]
    return found


def score(
    lab: Lab,
    simulation: Simulation,
    texts: Mapping[str, Sequence[behaviour.Row]],
    *,
    problems: int = 0,
    purpose: Purpose = "sweep",
) -> Scored:
    """What a model scores under the scheme that is applied: perplexity on each text, and on `problems` problems.

    All of it goes into the ledger; the mean over the texts for `purpose`, the rest as points of a sweep.
    """
    applied = simulation.applied
    variant, log = applied.scheme.variant, lab.context.log("simulated")
    losses = {name: behaviour.losses(simulation.model, rows) for name, rows in texts.items()}
    exact = None
    if problems:
        request = Request(variant, lab.base, lab.profile.main_task, "hf", limit=problems, purpose="sweep")
        about = {"simulated": variant} | applied.settings()
        with quantize.to_log(log), children_to_log(log, 2):  # lm-eval asks git, which complains
            tokenizer = checkpoint.load_tokenizer(lab.base)
            exact = evaluation.evaluate_loaded(simulation.model, tokenizer, request, lab.context, about)
    scored = Scored(applied.scheme, applied.method, simulation.bits_per_weight(applied.scheme), losses, exact)
    common: dict[str, Any] = {"variant": variant, "backend": SIMULATED}
    common["settings"] = applied.settings() | _tokens_of(texts)
    mean: dict[str, Any] = {"task": "mean of texts", "stderr": scored.stderr, "n": scored.rows, "purpose": purpose}
    lines = [
        *_perplexities(lab, losses, purpose="sweep", **common),
        lab.measurement("perplexity", "perplexity", scored.perplexity, **mean, **common),
        lab.measurement("size", "bits_per_weight", scored.bits_per_weight, unit="bits", purpose="sweep", **common),
    ]
    if exact:
        lines.append(replace(lab.scored_by(exact), backend=SIMULATED))
    lab.workspace.ledger.append(lines)
    return scored


def perplexity_of(lab: Lab, variant: str, texts: Mapping[str, Sequence[behaviour.Row]]) -> dict[str, behaviour.Losses]:
    """A checkpoint's losses on each text, by transformers; each perplexity is a headline of the ledger."""
    with notebook.waiting(f"perplexity of {variant}"):
        model = lab.load(lab.checkpoint(variant))
        try:
            found = {name: behaviour.losses(model, rows) for name, rows in texts.items()}
        finally:
            memory.release(model)
    lab.workspace.ledger.append(_perplexities(lab, found, variant=variant, backend="hf", settings=_tokens_of(texts)))
    return found


def _perplexities(lab: Lab, losses: Mapping[str, behaviour.Losses], **common: Any) -> list[Measurement]:
    """A line for each text."""
    return [
        lab.measurement("perplexity", "perplexity", f.perplexity, task=t, stderr=f.stderr, n=len(f.scores), **common)
        for t, f in losses.items()
    ]


def _tokens_of(texts: Mapping[str, Sequence[behaviour.Row]]) -> dict[str, Any]:
    """Which texts were read, and how many tokens of each were predicted: what a perplexity depends on."""
    return {"tokens": {name: sum(row.predicted for row in rows) for name, rows in texts.items()}}
