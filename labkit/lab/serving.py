"""What a lab does with a server: starts it, puts loads on it, and writes down what they measured."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit import serving
from labkit.engine import number_type
from labkit.lab.notebook import progress_bar, waiting
from labkit.lab.telling import Telling
from labkit.ledger import SPEEDUP
from labkit.profiles import Engine
from labkit.serving import Alone, Load, Loaded, Repeated, Server, repeated

if TYPE_CHECKING:
    from labkit.ledger import Measurement

RATES = {"output_tok_per_s": "tok/s", "request_per_s": "req/s"}
TIMES = ("ttft_ms", "ttft_p99_ms", "itl_ms", "itl_p99_ms")
Runs = dict[Load, list[Loaded]]


class Serving(Telling):
    """The half of a `Lab` that serves."""

    if TYPE_CHECKING:

        def checkpoint(self, variant: str) -> Path: ...  # of Models

    def serve(self, folder: Path, *, compiled: bool = True, options: Sequence[str] = (), wait: bool = True) -> Server:
        """A server of a checkpoint; see `labkit.serving.serve`. Ends with `stop()` or its `with` block.

        wait=False: for `put_load`, which starts its benchmark while the server comes up.
        """
        with waiting(f"a server of {folder.name}") if wait else nullcontext():
            server = serving.serve(
                folder,
                engine=self._engine(compiled),
                log=self.log(f"server-{folder.name}"),
                options=options,
                cache=self._compiled_cache,
                offline=self.offline,
                wait=wait,
            )
        if wait:
            told = f"{server.model} is ready after {server.ready_seconds:.0f} s at {server.url}, in {server.dtype}"
            self.say(f"{told} where nothing is quantized (log: {server.log}).")
        return server

    def put_load(self, server: Server, tokenizer: Path, loads: Sequence[Load], repeats: int = 1) -> Runs:
        """Puts each load on the server, all of them `repeats` times over, after a warm-up that does not count."""
        starting = not server.ready_seconds
        warm_up = replace(max(loads, key=lambda load: load.concurrency), input_tokens=8, output_tokens=2)
        with progress_bar(1 + repeats * len(loads), f"load on {server.model}", "load") as bar:
            _, *found = serving.put_load(
                server,
                [warm_up, *(load for _ in range(repeats) for load in loads)],
                tokenizer=tokenizer,
                engine=self.profile.engine,
                log=self.log(f"load-{server.model}"),
                seed=self.profile.seed,
                offline=self.offline,
                on_tick=bar,
            )
        if starting:
            print(
                f"{server.model}, in {server.dtype}, was ready after {server.ready_seconds:.0f} s (log: {server.log})"
            )
        return {load: [one for one in found if one.load == load] for load in loads}

    def measure_alone(self, folder: Path, seconds: float) -> Alone:
        """An engine without a server, for about so many seconds: its memory, its decode, with the most and with the
        fewest requests at once first, and its prefill; see serving.measure_alone.
        """
        plan = self.profile.serving
        with waiting(f"{folder.name} without a server"):
            return serving.measure_alone(
                folder,
                list(dict.fromkeys((plan.concurrencies[-1], *plan.concurrencies))),
                plan.prefill_tokens,
                seconds=seconds,
                repeats=plan.repeats,
                engine=self._engine(plan.compiled),
                log=self.log(f"alone-{folder.name}"),
                cache=self._compiled_cache,
                offline=self.offline,
                seed=self.profile.seed,
            )

    def record_loads(self, variant: str, runs: Runs, headline: Load) -> None:
        """Every figure of a variant's loads goes into the ledger: those of `headline` as such, the rest as sweep."""
        self.workspace.ledger.append(
            self._of_load(variant, name, RATES.get(name, "ms"), repeated(results, name), load, headline)
            for load, results in runs.items()
            for name in (*RATES, *(TIMES if load.output_tokens > 1 else TIMES[:2]))  # after one token no other comes
        )

    def record_alone(self, variant: str, alone: Alone) -> None:
        """What an engine without a server measured goes into the ledger, as sweep."""
        plan, how = self.profile.serving, {"served": False, "dtype": alone.dtype}
        lines = [
            self._speed(
                variant, "decode_tok_per_s", "tok/s", alone.decode_tok_per_s(count), how | {"concurrency": count}
            )
            for count in alone.step_ms
        ]
        if read := alone.prefill_tok_per_s:
            lines.append(
                self._speed(variant, "prefill_tok_per_s", "tok/s", read, how | {"input_tokens": plan.prefill_tokens})
            )
        self.workspace.ledger.append(lines)
        self.record(
            "memory",
            "loaded_bytes",
            alone.loaded_bytes,
            variant=variant,
            unit="bytes",
            purpose="sweep",
            backend="vllm",
            settings=how,
        )

    def record_speedup(self, variant: str, gain: Repeated, load: Load) -> None:
        """How many times the baseline's output a served variant reaches under a load: the lab's headline of it."""
        self.workspace.ledger.append([self._of_load(variant, SPEEDUP, "×", gain, load, load)])

    def _engine(self, compiled: bool) -> Engine:
        engine = self.profile.engine
        return serving.compiling(engine) if compiled else replace(engine, enforce_eager=True)

    @property
    def _compiled_cache(self) -> Path:
        return self.workspace.root / "cache" / "vllm"

    def _of_load(
        self, variant: str, metric: str, unit: str, figure: Repeated, load: Load, headline: Load | None = None
    ) -> Measurement:
        """One figure of a server's load as a ledger line, with all that moves a speed."""
        settings = {**asdict(load), "served": True, "dtype": number_type(self.profile.engine, self.checkpoint(variant))}
        return self._speed(variant, metric, unit, figure, settings, load.requests, load == headline)

    def _speed(
        self,
        variant: str,
        metric: str,
        unit: str,
        figure: Repeated,
        settings: dict[str, Any],
        requests: int = 1,
        headline: bool = False,
    ) -> Measurement:
        return self.measurement(
            "latency" if metric in TIMES else "throughput",
            metric,
            figure.median,
            variant=variant,
            backend="vllm",
            ci_low=figure.low,
            ci_high=figure.high,
            n=requests * figure.repeats,
            unit=unit,
            settings={
                **settings,
                "repeats": figure.repeats,
                "compiled": figure.compiled,
                "seed": self.profile.seed,
            },
            purpose="headline" if headline else "sweep",
        )
