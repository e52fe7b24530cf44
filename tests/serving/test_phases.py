"""An engine without a server: its memory and its phases, from a real engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.errors import ProcessFailed, UsageError
from labkit.serving import Load, Phases, measure_alone
from tests.models import make_model
from tests.serving.conftest import ENGINE

DECODE, PREFILL = Load(2, 2, 8, 9), Load(1, 1, 64, 1)


def test_decode_counts_the_steps_after_the_first_token_and_prefill_the_tokens_read() -> None:
    found = Phases.of(DECODE, PREFILL, [0.1, 0.9, 0.5], compiled=True)
    assert (found.step_ms, found.decode_tok_per_s, found.prefill_tok_per_s) == pytest.approx((100.0, 20.0, 128.0))


def test_each_repeat_of_a_real_engine_has_its_rates(served: Path, tmp_path: Path) -> None:
    found = measure_alone(served, DECODE, PREFILL, repeats=2, engine=ENGINE, log=tmp_path / "log")
    assert len(found.repeats) == 2
    for one in found.repeats:
        assert min(one.decode_tok_per_s, one.step_ms, one.prefill_tok_per_s) > 0
        assert not one.compiled


def test_loading_takes_the_bytes_of_the_weights_more_and_memory_alone_needs_no_repeat(tmp_path: Path) -> None:
    small = make_model(tmp_path / "small", hidden=128)
    large = make_model(tmp_path / "large", hidden=1024, layers=8)
    weights = (large / "model.safetensors").stat().st_size - (small / "model.safetensors").stat().st_size
    assert weights > 100e6
    took = [
        measure_alone(folder, DECODE, PREFILL, repeats=0, engine=ENGINE, log=tmp_path / "log")
        for folder in (small, large)
    ]
    assert [one.repeats for one in took] == [(), ()]
    assert took[1].loaded_bytes - took[0].loaded_bytes == pytest.approx(weights, rel=0.25)


@pytest.mark.parametrize(
    ("decode", "prefill", "words"),
    [
        (Load(1, 1, 8, 9), Load(1, 1, 512, 1), "512 tokens in and 1 out are more than the engine's context of 512"),
        (Load(1, 1, 500, 64), PREFILL, "500 tokens in and 64 out"),
        (Load(1, 1, 8, 1), PREFILL, "a decode of one token has no step"),
    ],
)
def test_what_can_t_be_measured_is_refused_before_an_engine_starts(
    served: Path, tmp_path: Path, decode: Load, prefill: Load, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        measure_alone(served, decode, prefill, repeats=1, engine=ENGINE, log=tmp_path / "log")
    assert not (tmp_path / "log").exists()


def test_a_checkpoint_that_the_engine_refuses_is_an_error_with_its_words(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ProcessFailed) as told:
        measure_alone(folder, DECODE, PREFILL, repeats=0, engine=ENGINE, log=tmp_path / "log")
    assert str(tmp_path / "log") in told.value.fix
