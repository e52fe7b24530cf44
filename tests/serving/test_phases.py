"""An engine without a server: its memory and its phases, from a real engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labkit.errors import ProcessFailed, UsageError
from labkit.serving import Alone, Load, Repeated, in_words, measure_alone, ratio
from tests.models import make_model
from tests.serving.conftest import ENGINE


def test_every_number_of_requests_and_prefill_are_measured_in_a_real_engine(served: Path, tmp_path: Path) -> None:
    found = measure_alone(served, [4, 1], 64, seconds=6, repeats=2, engine=ENGINE, log=tmp_path / "log")
    assert list(found.step_ms) == [4, 1]
    assert found.prefill_tok_per_s is not None
    for one in (*found.step_ms.values(), found.prefill_tok_per_s):
        assert (one.repeats, one.compiled) == (2, False)
        assert 0 < one.low <= one.median <= one.high
    assert found.decode_tok_per_s(4).median == pytest.approx(4000 / found.step_ms[4].median)
    assert found.decode_tok_per_s(4).high == pytest.approx(4000 / found.step_ms[4].low)


def test_a_slow_engine_takes_one_step_and_leaves_out_what_does_not_fit(served: Path, tmp_path: Path) -> None:
    found = measure_alone(served, [4, 2, 1], 64, seconds=1e-6, repeats=3, engine=ENGINE, log=tmp_path / "log")
    assert found.step_ms[4].repeats == 1
    assert list(found.step_ms) == [4], "the first is measured in any case"
    assert found.prefill_tok_per_s is None


def test_no_more_steps_are_taken_than_the_context_has_tokens_for(served: Path, tmp_path: Path) -> None:
    """The engine's child fails when its requests end before it has measured."""
    short = replace(ENGINE, max_model_len=41)
    found = measure_alone(served, [2], 16, seconds=60, repeats=3, engine=short, log=tmp_path / "log")
    assert found.step_ms[2].repeats == 3


def test_loading_takes_the_bytes_of_the_weights_more(tmp_path: Path) -> None:
    """In BF16, on any CPU: in float32 it is twice that."""
    small = make_model(tmp_path / "small", hidden=128)
    large = make_model(tmp_path / "large", hidden=1024, layers=8)
    weights = (large / "model.safetensors").stat().st_size - (small / "model.safetensors").stat().st_size
    assert weights > 100e6
    engine = replace(ENGINE, dtype="bfloat16")
    took = [
        measure_alone(folder, [1], 8, seconds=0.1, repeats=1, engine=engine, log=tmp_path / "log")
        for folder in (small, large)
    ]
    assert took[1].loaded_bytes - took[0].loaded_bytes == pytest.approx(weights, rel=0.25)


def test_a_load_takes_its_prompts_and_its_steps() -> None:
    alone = Alone(0, "bfloat16", {4: Repeated.of([100.0], False)}, Repeated.of([50.0], False))
    load = Load(concurrency=4, requests=8, input_tokens=10, output_tokens=20)
    assert alone.seconds_of(load) == pytest.approx(8 * 10 / 50 + 2 * 20 * 0.1)


def test_a_ratio_says_whether_its_repeats_tell_the_two_apart() -> None:
    slow, fast, wide = (Repeated.of(values, False) for values in ([1.0, 1.1], [2.0, 2.2], [0.5, 3.0]))
    assert in_words(ratio(fast, slow)) == "Its slowest repeat is above the baseline's fastest"
    assert in_words(ratio(slow, fast)) == "Its fastest repeat is below the baseline's slowest"
    assert in_words(ratio(wide, slow)) == "The repeats do not tell the two apart"
    assert in_words(ratio(Repeated.of([2.0], False), slow)) == "Measured once, so without a spread"


def test_a_prompt_beyond_the_context_is_refused_before_an_engine_starts(served: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="512 tokens in and one out are more than the engine's context of 512"):
        measure_alone(served, [1], 512, seconds=1, repeats=1, engine=ENGINE, log=tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_checkpoint_that_the_engine_refuses_is_an_error_with_its_words(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ProcessFailed) as told:
        measure_alone(folder, [1], 8, seconds=1, repeats=1, engine=ENGINE, log=tmp_path / "log")
    assert str(tmp_path / "log") in told.value.fix
