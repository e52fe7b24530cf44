"""Online quantization, by the installed vLLM on a real checkpoint."""

from __future__ import annotations

from pathlib import Path

from labkit import hardware
from labkit.serving import online_schemes
from tests.serving.conftest import ENGINE


def test_every_name_is_tried_and_goes_as_the_capability_matrix_says(served: Path, tmp_path: Path) -> None:
    found = {one.name: one for one in online_schemes(served, engine=ENGINE, log=tmp_path / "log")}
    assert len(found) > len([one for one in found.values() if one.scheme]) == 5
    for one in found.values():
        if one.scheme:
            assert one.taken == (hardware.capability(one.scheme).verdict != "no"), one
            assert one.quantized_share == float(one.taken), one
        else:
            assert one.quantized_share == 0.0, f"{one.name} rounds dense layers: it belongs into the table of schemes"
        assert one.taken or one.words
