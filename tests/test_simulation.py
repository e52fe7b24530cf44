"""Schemes on whole models: what llm-compressor's checkpoints compute, any architecture, and everything taken back."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from labkit import checkpoint, measured
from labkit.data import calibration_set
from labkit.errors import DataError, UsageError
from labkit.lab import open_lab
from labkit.numerics import E2M1, E4M3, INT2, INT3, INT4, INT8, Format, LowRank, hessian, round_to_nearest
from labkit.profiles import TINY
from labkit.quantize import quantizing
from labkit.simulation import Scheme, Weights, block_hessians, paper_grid, simulating
from tests.models import Architecture, make_model, small_tokenizer

ARCHITECTURES: tuple[Architecture, ...] = ("llama", "qwen2", "qwen3", "granite", "mistral", "gemma")
IDS = torch.tensor([list(range(5, 60))])
ROWS = [list(range(5, 5 + length)) for length in (40, 17, 40, 33)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "base", layers=3)


@pytest.fixture
def model(base: Path) -> Any:
    return checkpoint.load(base)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def linears_of(model: Any) -> dict[str, torch.nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}


def saved(base: Path, final: Path, recipe: Any, rows: Any = None) -> Any:
    """What transformers makes of the checkpoint that llm-compressor writes."""
    from llmcompressor import oneshot

    data = {"dataset": rows.dataset(), "max_seq_length": 256, "num_calibration_samples": 16} if rows else {}
    with quantizing(final, base, log=final.parent / "log") as job:
        loaded = job.load()
        oneshot(model=loaded, recipe=recipe, **data)
        job.save(loaded, rows)
    return checkpoint.load(final)


# ---- one layer


def test_a_layer_rounds_each_token_of_its_input_and_adds_its_correction(model: Any) -> None:
    linear, x = model.model.layers[0].mlp.up_proj, torch.randn(2, 5, 128).to(model.dtype)
    plain = linear(x)
    with simulating(model) as simulation:
        assert torch.equal(linear(x), plain)
        simulation.apply(Scheme(Weights(INT4), E4M3, rank=3))
        weight = linear.weight + simulation.corrections["model.layers.0.mlp.up_proj"].product()
        expected = torch.nn.functional.linear(round_to_nearest(x, E4M3, "per-token"), weight)
        torch.testing.assert_close(linear(x), expected, rtol=0.02, atol=0.02)
        with pytest.raises(DataError, match="NaN"):
            linear(torch.full((1, 128), torch.nan))
    assert torch.equal(linear(x), plain)


# ---- against llm-compressor


@pytest.mark.parametrize(("name", "fmt"), [("W8A8", INT8), ("FP8_DYNAMIC", E4M3)])
def test_w8a8_by_rounding_computes_what_llm_compressors_checkpoint_computes(
    base: Path, model: Any, tmp_path: Path, name: str, fmt: Format
) -> None:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    recipe = QuantizationModifier(targets="Linear", scheme=name, ignore=["lm_head"])
    theirs = logits(saved(base, tmp_path / "out", recipe))
    with simulating(model) as simulation:
        simulation.apply(Scheme(Weights(fmt, group=4096), fmt))
        assert torch.equal(logits(model), theirs)


def test_w8a8_by_gptq_leaves_nearly_all_weights_as_llm_compressor_leaves_them(
    base: Path, model: Any, tmp_path: Path
) -> None:
    from llmcompressor.modifiers.gptq import GPTQModifier

    rows = calibration_set(TINY.calibration, small_tokenizer(), rows=16)
    recipe = GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"], actorder=None, dampening_frac=0.1)
    theirs, equal = saved(base, tmp_path / "out", recipe, rows), {}
    with simulating(model) as simulation:
        for method in ("gptq", "rtn"):
            scheme = Scheme(Weights(INT8, group=4096), INT8)
            simulation.apply(scheme, method=method, rows=rows.input_ids, dampening_frac=0.1)
            equal[method] = [
                float((linear.weight == theirs.get_submodule(name).weight).float().mean())
                for name, linear in simulation.linears.items()
            ]
    assert min(equal["gptq"]) > 0.95  # measured: 0.978 to 0.993
    assert max(equal["rtn"]) < 0.9


# ---- any architecture, the whole grid


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_as_long_as_nothing_is_rounded_hessians_are_those_of_one_forward(
    tmp_path: Path, architecture: Architecture
) -> None:
    model = checkpoint.load(make_model(tmp_path / "base", architecture, layers=3), dtype="float32")
    linears = linears_of(model)
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in linears}
    with ExitStack() as hooks, torch.no_grad():
        for name, module in linears.items():
            note = partial(lambda name, _module, args: inputs[name].append(args[0][0]), name)
            hooks.enter_context(module.register_forward_pre_hook(note))
        for row in ROWS:
            model(torch.tensor([row]))
    found = list(block_hessians(model, linears, ROWS))
    assert [len(hessians) for hessians in found] == [7, 7, 7]
    for name, H in (item for hessians in found for item in hessians.items()):
        torch.testing.assert_close(H, hessian(torch.cat(inputs[name])), rtol=1e-3, atol=1e-4)


def test_later_blocks_see_what_rounding_did_to_earlier_ones(model: Any) -> None:
    linears, name = linears_of(model), "model.layers.1.self_attn.q_proj"
    untouched, walk = list(block_hessians(model, linears, ROWS)), block_hessians(model, linears, ROWS)
    for each in next(walk):
        linears[each].weight.data.mul_(0.5)
    assert not torch.allclose(next(walk)[name], untouched[1][name])


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "opt"])
def test_every_row_of_the_grid_goes_on_any_architecture_and_comes_off_again(
    tmp_path: Path, architecture: Architecture
) -> None:
    opt = architecture == "opt"  # biases, other names, inputs flattened over rows
    model = checkpoint.load(make_model(tmp_path / "base", architecture, hidden=64 if opt else 128))
    before = logits(model)
    answers: dict[str, torch.Tensor] = {}
    with simulating(model) as simulation:
        assert len(simulation.linears) == (12 if opt else 14)
        for scheme in paper_grid(group=64):
            simulation.apply(scheme, method="gptq", rows=ROWS)
            answers[scheme.variant] = logits(model)
            assert answers[scheme.variant].isfinite().all()
    assert len(answers) == 14
    assert torch.equal(answers.pop("bf16"), before)
    assert not any(torch.equal(answer, before) for answer in answers.values())
    assert torch.equal(logits(model), before)


# ---- what is applied


def test_other_rows_or_dampening_round_again_and_the_order_of_schemes_does_not_matter(model: Any) -> None:
    def answers(scheme: Scheme, *more: Any) -> torch.Tensor:
        rows, dampening_frac = more or (ROWS, 0.1)
        simulation.apply(scheme, method="gptq", rows=rows, dampening_frac=dampening_frac)
        return logits(model)

    scheme, another = Scheme(Weights(INT4), E4M3, rank=4), Scheme(Weights(E2M1), E4M3)
    with simulating(model) as simulation:
        first = answers(scheme)
        assert not torch.equal(answers(scheme, ROWS, 10.0), first)
        assert not torch.equal(answers(scheme, [list(range(100, 160))], 0.1), first)
        assert not torch.equal(answers(another), first)
        answers(Scheme())
        assert torch.equal(answers(scheme), first)


def test_lorc_makes_the_error_of_every_layer_smaller_with_each_rank(model: Any) -> None:
    with simulating(model) as simulation:
        errors = []
        for rank in (0, 2, 8, 32):
            simulation.apply(Scheme(Weights(E2M1, group=64), E4M3, rank))
            errors.append(simulation.errors())
    assert all(a[name] > b[name] for a, b in itertools.pairwise(errors) for name in a)


def test_constrained_scales_are_what_the_weights_are_rounded_with_and_rows_of_zeros_stay_zero(model: Any) -> None:
    name = "model.layers.0.mlp.up_proj"
    model.get_submodule(name).weight.data[3] = 0.0
    with simulating(model) as simulation:
        for scheme in paper_grid()[1:]:
            if not scheme.rank:
                simulation.apply(scheme, method="gptq", rows=ROWS)
                assert not simulation.linears[name].weight[3].any(), scheme.variant
                assert logits(model).isfinite().all()
        simulation.apply(Scheme(Weights(E2M1, 64, "M1"), E4M3))
        weight = simulation.linears[name].weight
        mantissa, _ = torch.frexp(weight[weight != 0].float().abs())
        assert set(mantissa.tolist()) <= {0.5, 0.75}  # E2M1 has 1.0 and 1.5; a power of two leaves both


def test_bytes_count_weights_scales_and_factors(model: Any) -> None:
    rows, columns = 128, 256
    weights, groups = rows * columns, rows * columns // 64
    assert Scheme().bytes_of(rows, columns) == 2 * weights
    assert Scheme(Weights(INT8, 64), INT8).bytes_of(rows, columns) == weights + 2 * groups
    packed = weights // 2
    assert Scheme(Weights(E2M1, 64), E4M3).bytes_of(rows, columns) == packed + 2 * groups
    assert Scheme(Weights(E2M1, 64, "M1"), E4M3).bytes_of(rows, columns) == packed + groups
    assert Scheme(Weights(E2M1, 64, "M2"), E4M3).bytes_of(rows, columns) == packed + groups + 2 * groups // 64
    factors = LowRank.bytes_at(rows, columns, 8)
    assert Scheme(Weights(E2M1, 64), E4M3, 8).bytes_of(rows, columns) == packed + 2 * groups + factors
    with simulating(model) as simulation:
        simulation.original = {name: original.float() for name, original in simulation.original.items()}
        assert simulation.bits_per_weight(Scheme()) == 16, "also where the model computes in float32"
        assert simulation.bits_per_weight(Scheme(Weights(E2M1, 64), E4M3)) == 4 + 16 / 64


# ---- what can go wrong


def test_models_whose_matrices_are_not_all_linear_layers_are_refused() -> None:
    gpt2 = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(UsageError, match="GPT2LMHeadModel has 0 linear layers"):
        simulating(transformers.GPT2LMHeadModel(gpt2)).__enter__()
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 2}
    with pytest.raises(UsageError, match=r"matrices beside them: .*experts"):
        simulating(transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, **heads))).__enter__()


def test_a_layer_that_can_not_be_rounded_is_named_and_leaves_no_other_rounded(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    with simulating(model) as simulation:
        with pytest.raises(DataError, match=r"layers\.1\.mlp\.up_proj: .*NaN"):
            simulation.apply(Scheme(Weights(E2M1), E4M3))
        name = "model.layers.0.mlp.up_proj"
        assert torch.equal(simulation.linears[name].weight, simulation.original[name])


@pytest.mark.parametrize(
    ("rank", "method", "says"),
    [(0, "gptq", "GPTQ got no rows"), (0, "awq", "method is 'awq'"), (65, "rtn", "rank is 65.*k_proj has 64 at most")],
)
def test_what_can_not_be_is_refused_and_the_models_own_weights_come_back(
    model: Any, rank: int, method: Any, says: str
) -> None:
    before = logits(model)

    def fail_after_rounding() -> None:
        with simulating(model) as simulation:
            simulation.apply(Scheme(Weights(INT4), INT8))
            simulation.apply(Scheme(Weights(E2M1), E4M3, rank), method=method)

    with pytest.raises(UsageError, match=says):
        fail_after_rounding()
    assert torch.equal(logits(model), before)


# ---- the grid's names, and what a lab writes down


def test_the_grid_is_the_papers() -> None:
    fours = ["INT–INT", "INT–FP", "FP–FP", "FP–FP M1", "FP–FP M2"]
    assert [(scheme.bits, scheme.formats) for scheme in paper_grid()] == [
        ("W16A16", "–"),
        *(("W8A8", formats) for formats in ("INT–INT", "INT–FP", "FP–FP")),
        *(("W4A8", formats + lorc) for formats in fours for lorc in ("", " LoRC")),
    ]
    assert len({scheme.variant for scheme in paper_grid()}) == 14


def test_a_variants_name_says_what_has_fewer_bits() -> None:
    assert Scheme(Weights(INT3)).variant == "w3a16-int"
    assert Scheme(Weights(INT2), rank=8).variant == "w2a16-int-lorc"
    assert Scheme(activations=E4M3).variant == "w16a8-fp"
    assert paper_grid()[0].variant == "bf16"
    assert paper_grid()[-1].variant == "w4a8-fp-fp-m2-lorc"


def test_a_scored_scheme_is_in_the_ledger_with_its_settings(tmp_path: Path) -> None:
    lab = open_lab("06_fp4_weights_lorc", workspace=str(tmp_path), limit=4)
    texts, ledger, rows = measured.held_out(lab), lab.workspace.ledger, lab.calibration_rows(8).input_ids
    schemes = [scheme for scheme in paper_grid() if scheme.variant in ("bf16", "w4a8-fp-fp-lorc")]
    with simulating(lab.load(lab.base)) as simulation:
        for scheme in schemes:
            simulation.apply(scheme, method="gptq", rows=rows)
            measured.score(lab, simulation, texts, problems=4, purpose="headline")
        group = {"groups": simulation.applied.settings()["groups"]}
        simulation.apply(Scheme(Weights(E2M1, constraint="M2")))
        about = {"method": "rtn", "rank": 0, "rounding": "ceil", "reading": "1/S"}
        assert simulation.applied.settings() == about | group
        simulation.apply(schemes[1])
        by_rounding = measured.score(lab, simulation, texts)
        simulation.apply(schemes[0])
        plain = measured.score(lab, simulation, texts)
    assert by_rounding.exact is None
    headlines = ledger.headlines(kind="perplexity")
    assert [(h.variant, h.task, h.backend, h.n) for h in headlines] == [
        (scheme.variant, "mean of texts", "simulated", 8) for scheme in schemes
    ]
    how = {"method": "gptq", "calibration_rows": 8, "dampening_frac": 0.01} | group
    assert all(h.value > 1 and h.stderr and how.items() <= h.settings.items() for h in headlines[1:])
    sweep = ledger.newest(variant="w4a8-fp-fp-lorc", task="mean of texts", purpose="sweep")
    assert [line.value for line in sweep] == [by_rounding.perplexity]
    texts_lines = ledger.newest(variant="bf16", purpose="sweep", kind="perplexity")
    assert {line.task for line in texts_lines} >= {"stories", "problems"}
    answers = ledger.newest(kind="accuracy")
    assert [(a.variant, a.n, a.settings["simulated"]) for a in answers] == [(s.variant, 4, s.variant) for s in schemes]
    bits = ledger.newest(metric="bits_per_weight", variant="w4a8-fp-fp-lorc")
    assert 4.06 < bits[0].value < 6
    # a checkpoint's perplexities are headlines, and the baseline's are the grid's
    found = measured.perplexity_of(lab, "bf16", texts)
    assert found == plain.losses
    lines = ledger.headlines(kind="perplexity", backend="hf")
    assert {line.task: line.value for line in lines} == {name: losses.perplexity for name, losses in found.items()}


def test_a_text_that_this_site_lacks_is_left_out_and_said(
    tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = {"profile": "workbench", "model": "tiny", "workspace": str(tmp_path)}
    assert list(measured.held_out(open_lab("06", data=str(shared_data), limit=2, **site))) == ["wikitext2"]
    said = capsys.readouterr().out
    assert "c4 is left out" in said
    assert "ptb is left out" in said
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="wikitext2"):
        measured.held_out(open_lab("06", data=str(tmp_path / "empty"), **site))
