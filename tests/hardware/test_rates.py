"""The machine's two rates: plausible, and of the right kind."""

from labkit.hardware import measure_rates


def test_rates_lie_between_what_any_machine_reaches_and_what_none_does() -> None:
    rates = measure_rates()
    assert 5e8 < rates.bytes_per_s < 1e13
    assert 1e9 < rates.flops_per_s < 1e16
