"""Schemes on whole models: what llm-compressor's checkpoints compute, any architecture, and everything taken back."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from labkit import checkpoint
from labkit.calibration import calibration_set
from labkit.divergence import log_probabilities, mean_kl
from labkit.errors import DataError, UsageError
from labkit.numerics import E2M1, E4M3, INT2, INT3, INT4, INT8, Format, hessian
from labkit.profiles import TINY
from labkit.quantize import quantizing
from labkit.simulation import METHODS, Method, Scheme, Weights, paper_grid, simulating
from labkit.simulation.blocks import block_hessians
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


def saved(base: Path, final: Path, recipe: Any, rows: Any = None) -> Any:
    """What transformers makes of the checkpoint that llm-compressor writes."""
    from llmcompressor import oneshot

    data = {"dataset": rows.dataset(), "max_seq_length": 256, "num_calibration_samples": 16} if rows else {}
    with quantizing(final, base, log=final.parent / "log") as job:
        loaded = job.load()
        oneshot(model=loaded, recipe=recipe, **data)
        job.save(loaded, rows)
    return checkpoint.load(final)


# ---- against llm-compressor


@pytest.mark.parametrize(("name", "fmt"), [("W8A8", INT8), ("FP8_DYNAMIC", E4M3)])
def test_w8a8_by_rounding_computes_what_llm_compressors_checkpoint_computes(
    base: Path, model: Any, tmp_path: Path, name: str, fmt: Format
) -> None:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    recipe = QuantizationModifier(targets="Linear", scheme=name, ignore=["lm_head"])
    theirs = logits(saved(base, tmp_path / "out", recipe))
    with simulating(model) as simulation:
        simulation.apply(Scheme(Weights(fmt, group=0), fmt))
        assert torch.equal(logits(model), theirs)


def test_w8a8_by_gptq_leaves_nearly_all_weights_as_llm_compressor_leaves_them(
    base: Path, model: Any, tmp_path: Path
) -> None:
    from llmcompressor.modifiers.gptq import GPTQModifier

    rows = calibration_set(TINY.calibration, small_tokenizer(), rows=16)
    recipe = GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"], actorder=None, dampening_frac=0.1)
    theirs = saved(base, tmp_path / "out", recipe, rows)
    with simulating(model) as simulation:
        equal: dict[Method, list[float]] = {}
        for method in METHODS:
            scheme = Scheme(Weights(INT8, group=0), INT8)
            simulation.apply(scheme, method=method, rows=rows.input_ids, dampening_frac=0.1)
            equal[method] = [
                float((linear.weight == theirs.get_submodule(name).weight).float().mean())
                for name, linear in simulation.linears.items()
            ]
    assert min(equal["gptq"]) > 0.95  # measured: 0.978 to 0.993
    assert max(equal["rtn"]) < 0.9


# ---- the inputs of GPTQ


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_as_long_as_nothing_is_rounded_hessians_are_those_of_one_forward(
    tmp_path: Path, architecture: Architecture
) -> None:
    model = checkpoint.load(make_model(tmp_path / "base", architecture, layers=3), dtype="float32")
    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in linears}
    hooks = [
        module.register_forward_hook(lambda _m, args, _out, name=name: inputs[name].append(args[0][0]))
        for name, module in linears.items()
    ]
    with torch.no_grad():
        for row in ROWS:
            model(torch.tensor([row]))
    for hook in hooks:
        hook.remove()
    found = list(block_hessians(model, linears, ROWS))
    assert [len(hessians) for hessians in found] == [7, 7, 7]
    for name, H in (item for hessians in found for item in hessians.items()):
        torch.testing.assert_close(H, hessian(torch.cat(inputs[name])), rtol=1e-3, atol=1e-4)


def test_later_blocks_see_what_rounding_did_to_earlier_ones(model: Any) -> None:
    linears = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    untouched = list(block_hessians(model, linears, ROWS))
    walk = block_hessians(model, linears, ROWS)
    for name in next(walk):
        linears[name].weight.data.mul_(0.5)
    assert not torch.allclose(
        next(walk)["model.layers.1.self_attn.q_proj"], untouched[1]["model.layers.1.self_attn.q_proj"]
    )


# ---- any architecture, the whole grid


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_row_of_the_grid_goes_on_any_architecture_and_comes_off_again(
    tmp_path: Path, architecture: Architecture
) -> None:
    model = checkpoint.load(make_model(tmp_path / "base", architecture))
    before, names = logits(model), [name for name, _ in model.named_modules()]
    answers: dict[str, torch.Tensor] = {}
    with simulating(model) as simulation:
        assert len(simulation.linears) == 14
        for scheme in paper_grid(group=64):
            simulation.apply(scheme, method="gptq", rows=ROWS)
            answers[scheme.variant] = logits(model)
            assert answers[scheme.variant].isfinite().all()
    assert len(answers) == 14
    assert torch.equal(answers.pop("bf16"), before)
    assert not any(torch.equal(answer, before) for answer in answers.values())
    assert torch.equal(logits(model), before)
    assert [name for name, _ in model.named_modules()] == names
    assert all(type(layer) is torch.nn.Linear for layer in (model.lm_head, model.get_decoder().layers[0].mlp.up_proj))


def test_the_grid_goes_on_a_model_with_biases_and_other_names(tmp_path: Path) -> None:
    model = checkpoint.load(make_model(tmp_path / "base", "opt", hidden=64))
    before = logits(model)
    with simulating(model) as simulation:
        assert len(simulation.linears) == 12
        for scheme in paper_grid(group=64):
            simulation.apply(scheme, method="gptq", rows=ROWS)
            assert logits(model).isfinite().all()
            assert torch.equal(logits(model), before) == (scheme.weights is None)
    assert torch.equal(logits(model), before)


def test_an_error_inside_the_block_gives_the_model_back_too(model: Any) -> None:
    before = logits(model)
    with pytest.raises(UsageError), simulating(model) as simulation:
        simulation.apply(Scheme(Weights(INT4), INT8, rank=999))  # the weights are rounded by then
    assert torch.equal(logits(model), before)


def test_what_is_applied_says_all_that_moves_a_score(tmp_path: Path) -> None:
    model = checkpoint.load(make_model(tmp_path / "base", hidden=96))
    rows = calibration_set(TINY.calibration, small_tokenizer(), rows=8).input_ids
    scheme = Scheme(Weights(E2M1, 64, "M2"), E4M3, rank=4)
    with simulating(model) as simulation:
        assert simulation.applied.settings() == {"method": "rtn", "rank": 0, "groups": []}
        simulation.apply(scheme, method="gptq", rows=rows, dampening_frac=0.05)
        assert simulation.applied.scheme == scheme
        assert simulation.applied.settings() == {
            "method": "gptq",
            "rank": 4,
            "groups": [64, 48],  # of 192 and of 96 columns
            "calibration_rows": 8,
            "dampening_frac": 0.05,
            "rounding": "ceil",
            "reading": "1/S",
        }
        simulation.apply(scheme)
        assert simulation.applied.settings()["method"] == "rtn"
        assert "dampening_frac" not in simulation.applied.settings()


def test_another_dampening_rounds_again(model: Any) -> None:
    rows = calibration_set(TINY.calibration, small_tokenizer(), rows=8).input_ids
    scheme, seen = Scheme(Weights(INT4)), []
    with simulating(model) as simulation:
        for dampening_frac in (0.1, 10.0, 0.1):
            simulation.apply(scheme, method="gptq", rows=rows, dampening_frac=dampening_frac)
            seen.append(logits(model))
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_the_order_of_schemes_does_not_matter(model: Any) -> None:
    first, second = Scheme(Weights(INT4), E4M3, rank=4), Scheme(Weights(E2M1), E4M3)
    with simulating(model) as simulation:
        simulation.apply(first)
        alone = logits(model)
        simulation.apply(second)
        simulation.apply(Scheme())
        simulation.apply(first)
        assert torch.equal(logits(model), alone)


# ---- what the tricks do to the weights


def test_gptq_trades_weight_error_for_output_error(model: Any) -> None:
    rows = calibration_set(TINY.calibration, small_tokenizer(), rows=32).input_ids
    reference = log_probabilities(model, rows[:8])
    found = {}
    with simulating(model) as simulation:
        for method in ("rtn", "gptq"):
            simulation.apply(Scheme(Weights(INT4)), method=method, rows=rows)  # type: ignore[arg-type]
            errors = simulation.errors()
            found[method] = sum(errors.values()), mean_kl(reference, log_probabilities(model, rows[:8]))
    assert found["gptq"][0] > found["rtn"][0]
    assert found["gptq"][1] < found["rtn"][1]


def test_lorc_brings_every_layer_nearer_with_each_rank(model: Any) -> None:
    with simulating(model) as simulation:
        errors = []
        for rank in (0, 2, 8, 32):
            simulation.apply(Scheme(Weights(E2M1, group=64), E4M3, rank))
            errors.append(simulation.errors())
    assert all(a[name] > b[name] for a, b in itertools.pairwise(errors) for name in a)


def test_constrained_scales_are_what_the_weights_are_rounded_with(model: Any) -> None:
    with simulating(model) as simulation:
        simulation.apply(Scheme(Weights(E2M1, 64, "M1"), E4M3))
        weight = next(iter(simulation.linears.values())).weight
        mantissa, _ = torch.frexp(weight[weight != 0].float().abs())
        assert set(mantissa.tolist()) <= {0.5, 0.75}  # E2M1 has 1.0 and 1.5; a power of two leaves both


def test_bytes_count_weights_scales_and_factors(model: Any) -> None:
    with simulating(model) as simulation:
        weights = sum(original.numel() for original in simulation.original.values())
        groups = weights // 64
        sides = sum(sum(original.shape) for original in simulation.original.values())
        assert simulation.weight_bytes(Scheme()) == 2 * weights
        simulation.original = {name: original.float() for name, original in simulation.original.items()}
        assert simulation.bits_per_weight(Scheme()) == 16, "also where the model computes in float32"
        assert simulation.weight_bytes(Scheme(Weights(INT8, 64), INT8)) == weights + 2 * groups
        assert simulation.weight_bytes(Scheme(Weights(E2M1, 64), E4M3)) == weights // 2 + 2 * groups
        assert simulation.weight_bytes(Scheme(Weights(E2M1, 64, "M1"), E4M3)) == weights // 2 + groups
        assert (
            simulation.weight_bytes(Scheme(Weights(E2M1, 64, "M2"), E4M3)) == weights // 2 + groups + 2 * groups // 64
        )
        assert simulation.weight_bytes(Scheme(Weights(E2M1, 64), E4M3, 8)) == weights // 2 + 2 * groups + 16 * sides
        assert simulation.bits_per_weight(Scheme(Weights(E2M1, 64), E4M3)) == 4 + 16 / 64


def test_a_group_that_does_not_divide_becomes_the_largest_that_does(tmp_path: Path) -> None:
    model = checkpoint.load(make_model(tmp_path / "base", hidden=96))
    with simulating(model) as simulation:
        simulation.apply(Scheme(Weights(INT4, 256), INT8))  # 96 and 192 columns
        assert simulation.bits_per_weight(Scheme(Weights(INT4, 64), INT8)) == pytest.approx(4 + 16 / 48, abs=0.1)


# ---- what can go wrong


def test_a_model_without_linear_layers_is_refused() -> None:
    config = transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(UsageError, match="GPT2LMHeadModel has 0 linear layers"):
        simulating(transformers.GPT2LMHeadModel(config)).__enter__()


def test_experts_in_one_tensor_are_not_passed_over() -> None:
    config = transformers.MixtralConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    with pytest.raises(UsageError, match=r"matrices beside them: .*experts"):
        simulating(transformers.MixtralForCausalLM(config)).__enter__()


def test_nan_in_a_weight_is_refused_with_the_layers_name(model: Any) -> None:
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    with simulating(model) as simulation, pytest.raises(DataError, match=r"layers\.1\.mlp\.up_proj: .*NaN"):
        simulation.apply(Scheme(Weights(E2M1), E4M3))


def test_a_layer_that_can_not_be_rounded_leaves_no_other_rounded(model: Any) -> None:
    before = logits(model)
    weight = model.model.layers[2].mlp.up_proj.weight
    kept = weight.data[3, 4].clone()
    weight.data[3, 4] = float("nan")
    with simulating(model) as simulation:
        with pytest.raises(DataError):
            simulation.apply(Scheme(Weights(E2M1), E4M3))
        assert torch.equal(
            simulation.linears["model.layers.0.mlp.up_proj"].weight, simulation.original["model.layers.0.mlp.up_proj"]
        )
    weight.data[3, 4] = kept
    assert torch.equal(logits(model), before)


def test_other_calibration_rows_round_again(model: Any) -> None:
    scheme = Scheme(Weights(INT4), INT8)
    with simulating(model) as simulation:
        simulation.apply(scheme, method="gptq", rows=ROWS)
        first = logits(model)
        simulation.apply(scheme, method="gptq", rows=[list(range(100, 160))])
        assert not torch.equal(logits(model), first)


def test_the_models_own_layers_come_back_with_what_hangs_on_them(model: Any) -> None:
    own, calls = model.model.layers[0].mlp.up_proj, []
    own.register_forward_hook(lambda *_: calls.append(1))
    with simulating(model) as simulation:
        simulation.apply(Scheme(Weights(INT4), INT8))
    assert model.model.layers[0].mlp.up_proj is own
    logits(model)
    assert calls == [1]


def test_a_row_of_zeros_stays_zero(model: Any) -> None:
    weight = model.model.layers[0].mlp.up_proj.weight
    weight.data[3] = 0.0
    with simulating(model) as simulation:
        for scheme in paper_grid()[1:]:
            if not scheme.rank:
                simulation.apply(scheme, method="gptq", rows=ROWS)
                assert not simulation.linears["model.layers.0.mlp.up_proj"].weight[3].any(), scheme.variant
                assert logits(model).isfinite().all()


def test_a_rank_above_a_layers_is_refused(model: Any) -> None:
    with simulating(model) as simulation, pytest.raises(UsageError, match=r"rank is 65.*64 at most"):
        simulation.apply(Scheme(Weights(E2M1), E4M3, rank=65))


@pytest.mark.parametrize(
    ("scheme", "more", "says"),
    [
        (Scheme(Weights(E2M1), E4M3), {"method": "gptq"}, "GPTQ got no rows"),
        (Scheme(Weights(E2M1), E4M3), {"method": "awq"}, "method is 'awq'"),
        (Scheme(Weights(E2M1), E2M1), {}, "activations in E2M1"),
        (Scheme(Weights(E2M1), E4M3, rank=65), {}, "k_proj has 64 at most"),
    ],
)
def test_what_can_not_be_is_refused_before_anything_is_rounded(
    model: Any, scheme: Scheme, more: dict[str, Any], says: str
) -> None:
    before = logits(model)
    with simulating(model) as simulation:
        with pytest.raises(UsageError, match=says):
            simulation.apply(scheme, **more)
        assert torch.equal(logits(model), before)


# ---- the grid's names


def test_the_grid_is_the_papers() -> None:
    assert [(scheme.bits, scheme.formats) for scheme in paper_grid()] == [
        ("W16A16", "–"),
        ("W8A8", "INT–INT"),
        ("W8A8", "INT–FP"),
        ("W8A8", "FP–FP"),
        ("W4A8", "INT–INT"),
        ("W4A8", "INT–INT LoRC"),
        ("W4A8", "INT–FP"),
        ("W4A8", "INT–FP LoRC"),
        ("W4A8", "FP–FP"),
        ("W4A8", "FP–FP LoRC"),
        ("W4A8", "FP–FP M1"),
        ("W4A8", "FP–FP M1 LoRC"),
        ("W4A8", "FP–FP M2"),
        ("W4A8", "FP–FP M2 LoRC"),
    ]
    assert len({scheme.variant for scheme in paper_grid()}) == 14


@pytest.mark.parametrize(
    ("scheme", "variant"),
    [
        (Scheme(), "bf16"),
        (Scheme(Weights(INT3)), "w3a16-int"),
        (Scheme(Weights(INT2), rank=8), "w2a16-int-lorc"),
        (Scheme(activations=E4M3), "w16a8-fp"),
        (Scheme(Weights(E2M1, constraint="M2"), E4M3, 8), "w4a8-fp-fp-m2-lorc"),
    ],
)
def test_a_variants_name_says_what_has_fewer_bits(scheme: Scheme, variant: str) -> None:
    assert scheme.variant == variant
