"""Online quantization, by the installed vLLM on a real checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit import hardware
from labkit.serving import Online, online_schemes
from tests.models import make_model
from tests.serving.conftest import ENGINE


def test_every_name_is_tried_and_goes_as_the_capability_matrix_says(served: Path, tmp_path: Path) -> None:
    found = {one.name: one for one in online_schemes(served, engine=ENGINE, log=tmp_path / "log")}
    assert len(found) > len([one for one in found.values() if one.scheme]) == 5
    for one in found.values():
        assert not one.bias_fault, "this model has no biases"
        if one.scheme:
            assert one.taken == (hardware.capability(one.scheme).verdict != "no"), one
            assert one.quantized_share == float(one.taken), one
        else:
            assert one.quantized_share == 0.0, f"{one.name} rounds dense layers: it belongs into the table of schemes"
        assert one.taken or one.words


@pytest.mark.skipif(
    hardware.engine_build() != "cpu" or "amx" not in hardware.this_machine().features,
    reason="block-wise FP8 needs AMX on a CPU",
)
def test_a_model_with_biases_is_refused_by_one_kernel_and_that_is_told_from_a_matrix_that_is_wrong(
    tmp_path: Path,
) -> None:
    model = make_model(tmp_path / "model", "qwen2")
    found = {one.name: one for one in online_schemes(model, engine=ENGINE, log=tmp_path / "log")}
    assert [name for name, one in found.items() if one.bias_fault] == ["fp8_per_block"]
    assert found["fp8_per_channel"].taken


def test_another_refusal_is_no_fault_of_biases() -> None:
    assert Online("fp8_per_block", False, 0.0, "expected scalar type Float but found BFloat16").bias_fault
    assert not Online("fp8_per_block", False, 0.0, "no kernel").bias_fault
    assert not Online("mxfp8", False, 0.0, "expected scalar type Float but found BFloat16").bias_fault
