"""What a lab writes down of a simulated scheme."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.errors import DataError
from labkit.lab import open_lab
from labkit.simulation import paper_grid, simulating


def test_a_scored_scheme_is_in_the_ledger_with_its_settings(tmp_path: Path) -> None:
    lab = open_lab("06_fp4_weights_lorc", workspace=str(tmp_path), limit=4)
    texts = lab.held_out()
    model = lab.load(lab.base)
    schemes = [scheme for scheme in paper_grid() if scheme.variant in ("bf16", "w4a8-fp-fp-lorc")]
    with simulating(model) as simulation:
        for method in ("gptq", "rtn"):
            for scheme in schemes:
                simulation.apply(scheme, method=method, rows=lab.calibration_rows(8).input_ids)
                gptq = method == "gptq"
                found = lab.score(simulation, texts, problems=4 * gptq, purpose="headline" if gptq else "sweep")
    assert found.exact is None
    headlines = lab.workspace.ledger.headlines(kind="perplexity")
    assert [(h.variant, h.task, h.backend, h.n) for h in headlines] == [
        ("bf16", "mean of texts", "simulated", 8),
        ("w4a8-fp-fp-lorc", "mean of texts", "simulated", 8),
    ]
    assert all(h.value > 1 and h.stderr and h.settings["method"] == "gptq" for h in headlines)
    by_rounding = lab.workspace.ledger.newest(variant="w4a8-fp-fp-lorc", task="mean of texts", purpose="sweep")
    assert [line.value for line in by_rounding] == [found.perplexity]
    texts_lines = lab.workspace.ledger.newest(variant="bf16", purpose="sweep", kind="perplexity")
    assert {line.task for line in texts_lines} >= {"stories", "problems"}
    answers = lab.workspace.ledger.newest(kind="accuracy")
    assert [(a.variant, a.n, a.settings["simulated"]) for a in answers] == [
        ("bf16", 4, "bf16"),
        ("w4a8-fp-fp-lorc", 4, "w4a8-fp-fp-lorc"),
    ]
    bits = lab.workspace.ledger.newest(metric="bits_per_weight", variant="w4a8-fp-fp-lorc")
    assert 4.06 < bits[0].value < 6


def test_a_checkpoints_perplexities_are_headlines_and_the_baselines_are_the_grids(tmp_path: Path) -> None:
    lab = open_lab("06_fp4_weights_lorc", workspace=str(tmp_path), limit=4)
    texts = lab.held_out()
    with simulating(lab.load(lab.base)) as simulation:
        plain = lab.score(simulation, texts)
    found = lab.perplexity_of("bf16", texts)
    assert found == plain.losses
    lines = lab.workspace.ledger.headlines(kind="perplexity", backend="hf")
    assert {line.task: line.value for line in lines} == {name: losses.perplexity for name, losses in found.items()}


def test_a_text_that_this_site_lacks_is_left_out_and_said(
    tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab = open_lab("06", profile="workbench", model="tiny", workspace=str(tmp_path), data=str(shared_data), limit=2)
    assert list(lab.held_out()) == ["wikitext2"]
    told = capsys.readouterr().out
    assert "c4 is left out" in told
    assert "ptb is left out" in told
    (tmp_path / "empty").mkdir()
    lab = open_lab("06", profile="workbench", model="tiny", workspace=str(tmp_path), data=str(tmp_path / "empty"))
    with pytest.raises(DataError, match="wikitext2"):
        lab.held_out()
