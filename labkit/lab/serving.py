"""What a lab does with a server: starts it, puts loads on it, and writes down what they measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from labkit import checkpoint, hardware, processes, serving
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

    def compiles(self) -> bool:
        """Whether servers compile their model here; prints what that takes or what is missing."""
        lacks = hardware.compile_lacks(processes.engine_python())
        if lacks:
            print(f"vLLM runs without compiling here, which makes it slower. {lacks}")
        else:
            print("vLLM compiles the model: up to a minute more at a variant's first start than at later ones.")
        return not lacks

    def serve(self, folder: Path, *, compiled: bool = True, options: Sequence[str] = (), wait: bool = True) -> Server:
        """A server of a checkpoint; see `labkit.serving.serve`. Ends with `stop()` or its `with` block.

        wait=False: for `put_load`, which starts its benchmark while the server comes up.
        """
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
            print(f"{server.model} is ready after {server.ready_seconds:.0f} s at {server.url} (log: {server.log})")
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
            print(f"{server.model} was ready after {server.ready_seconds:.0f} s (log: {server.log})")
        return {load: [one for one in found if one.load == load] for load in loads}

    def measure_alone(self, folder: Path, decode: Load, prefill: Load, repeats: int, *, compiled: bool = True) -> Alone:
        """An engine without a server: its memory and, `repeats` times, its two phases; see serving.measure_alone."""
        with waiting(f"{folder.name} without a server"):
            return serving.measure_alone(
                folder,
                decode,
                prefill,
                repeats=repeats,
                engine=self._engine(compiled),
                log=self.log(f"alone-{folder.name}"),
                cache=self._compiled_cache,
                offline=self.offline,
                seed=self.profile.seed,
            )

    def kernel_times(self, config: Path, tokens: Sequence[int]) -> dict[bool, list[serving.KernelTime]]:
        """A model's widest product, the first of its MLP, by the CPU engine's kernels; see serving.kernel_times."""
        shape = checkpoint.read_config(config)
        with waiting("kernels"):
            return serving.kernel_times(
                2 * shape["intermediate_size"],  # gate and up are one product in vLLM
                shape["hidden_size"],
                tokens,
                engine=self.profile.engine,
                log=self.log("kernels"),
            )

    def online_schemes(self, folder: Path) -> list[serving.Online]:
        """What vLLM does with each of its names for rounding while it loads; see serving.online_schemes."""
        engine, log = self.profile.engine, self.log("online")
        with waiting("one engine after another"):
            return serving.online_schemes(folder, engine=engine, log=log, offline=self.offline)

    def record_loads(self, variant: str, runs: Runs, headline: Load) -> None:
        """Every figure of a variant's loads goes into the ledger: those of `headline` as such, the rest as sweep."""
        self.workspace.ledger.append(
            self._of_load(variant, name, RATES.get(name, "ms"), repeated(results, name), load, headline)
            for load, results in runs.items()
            for name in (*RATES, *(TIMES if load.output_tokens > 1 else TIMES[:2]))  # after one token no other comes
        )

    def record_alone(self, variant: str, alone: Alone, decode: Load, prefill: Load) -> None:
        """What an engine without a server measured goes into the ledger, as sweep."""
        self.record(
            "memory", "loaded_bytes", alone.loaded_bytes, variant=variant, unit="bytes", purpose="sweep", backend="vllm"
        )
        rates = {"decode_tok_per_s": decode, "prefill_tok_per_s": prefill}
        self.workspace.ledger.append(
            self._of_load(variant, name, "tok/s", repeated(alone.repeats, name), load, served=False)
            for name, load in rates.items()
            if alone.repeats
        )

    def record_speedups(
        self, variant: str, gains: Mapping[Load, Repeated], headline: Load | None = None, *, served: bool = True
    ) -> None:
        """How many times the baseline's figure a variant reaches, under each load; served: through a server or not."""
        self.workspace.ledger.append(
            self._of_load(variant, SPEEDUP, "×", gain, load, headline, served=served) for load, gain in gains.items()
        )

    def _engine(self, compiled: bool) -> Engine:
        engine = self.profile.engine
        return serving.compiling(engine) if compiled else replace(engine, enforce_eager=True)

    @property
    def _compiled_cache(self) -> Path:
        return self.workspace.root / "cache" / "vllm"

    def _of_load(
        self,
        variant: str,
        metric: str,
        unit: str,
        figure: Repeated,
        load: Load,
        headline: Load | None = None,
        *,
        served: bool = True,
    ) -> Measurement:
        """One figure of a load as a ledger line, with all that moves a speed: load, repeats, how the engine runs."""
        return self.measurement(
            "latency" if metric in TIMES else "throughput",
            metric,
            figure.median,
            variant=variant,
            backend="vllm",
            ci_low=figure.low,
            ci_high=figure.high,
            n=load.requests * figure.repeats,
            unit=unit,
            settings={
                **asdict(load),
                "repeats": figure.repeats,
                "compiled": figure.compiled,
                "served": served,
                "seed": self.profile.seed,
            },
            purpose="headline" if load == headline else "sweep",
        )
