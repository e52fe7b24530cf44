"""The faster GPTQ is llm-compressor's: the same grid points but for the order of sums, the same flags, fewer steps."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from llmcompressor.modifiers.gptq import base
from torch import Tensor

from labkit import checkpoint
from labkit.calibration import calibration_set
from labkit.faster import faster
from labkit.profiles import TINY
from labkit.quantize import quantizing

from .models import make_model, small_tokenizer

INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
INT4_GROUPS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
SCHEMES: dict[str, dict[str, Any]] = {
    "INT8": INT8,
    "INT8 in order": INT8 | {"actorder": "static"},
    "INT8 per tensor": INT8 | {"strategy": "tensor"},
    "INT4 groups": INT4_GROUPS | {"symmetric": True},
    "INT4 groups in order": INT4_GROUPS | {"symmetric": True, "actorder": "static"},
    "INT4 groups by weight": INT4_GROUPS | {"symmetric": True, "actorder": "weight"},
    "INT4 groups with zero points": INT4_GROUPS | {"symmetric": False},
    "FP8": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
    "FP8 blocks": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 32], "symmetric": True},
    "NVFP4": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True},
}
ROWS, COLUMNS = 64, 320  # columns: no multiple of the block of 128


def problem(args: QuantizationArgs, count: int = 1) -> dict[str, Any]:
    """Weights and Hessians of correlated inputs, and scales of the shape that the scheme has."""
    torch.manual_seed(0)
    weights = torch.randn(count, ROWS, COLUMNS)
    x = torch.randn(count, 4 * COLUMNS, COLUMNS) @ (torch.eye(COLUMNS) + 0.3 * torch.randn(COLUMNS, COLUMNS))
    groups = {"channel": (ROWS, 1), "tensor": (1, 1), "block": (ROWS // 32, COLUMNS // 32)}
    shape = groups.get(str(args.strategy), (ROWS, COLUMNS // (args.group_size or 1)))
    largest = {4: 7.0, 8: 127.0}[args.num_bits] if args.type == "int" else {4: 6.0, 8: 448.0}[args.num_bits]
    scale = (3.5 / largest) * (1 + 0.2 * torch.rand(count, *shape))
    zero = torch.randint(-2, 3, scale.shape, dtype=torch.int8) if not args.symmetric else torch.zeros_like(scale).char()
    overall = torch.full((count,), 3.0) if args.strategy == "tensor_group" else None
    return {
        "weights": weights,
        "hessians": x.mT @ x / len(x[0]),
        "scale": scale * (3.0 if overall is not None else 1.0),
        "zero_point": zero,
        "global_scale": overall,
        "quant_args": args,
        "percdamp": 0.01,
    }


def both(given: dict[str, Any]) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Theirs and ours on copies: both work in place."""

    def copy() -> dict[str, Any]:
        return {name: value.clone() if isinstance(value, Tensor) else value for name, value in given.items()}

    theirs = base.quantize_weight(**copy())
    with faster():
        ours = base.quantize_weight(**copy())
    return theirs, ours


@pytest.mark.parametrize("name", SCHEMES)
def test_the_grid_points_are_llm_compressors(name: str) -> None:
    given = problem(QuantizationArgs(**SCHEMES[name]), count=2)
    (W, losses, fell_back), (ours, our_losses, ours_fell_back) = both(given)
    assert ours.shape == W.shape
    assert ours.dtype == W.dtype
    assert (ours == W).float().mean() > 0.99  # one weight between two points moves the rest of its row
    torch.testing.assert_close(our_losses, losses, rtol=0.01, atol=0)
    assert fell_back.tolist() == ours_fell_back.tolist() == [False, False]


def test_columns_that_no_input_reached_become_zero_in_both() -> None:
    given = problem(QuantizationArgs(**INT8))
    given["hessians"][:, :, 7] = given["hessians"][:, 7, :] = 0
    (W, *_), (ours, *_) = both(given)
    assert W[:, :, 7].abs().max() == ours[:, :, 7].abs().max() == 0
    assert (ours == W).float().mean() > 0.999


def test_a_hessian_without_a_factor_is_flagged_and_rounded_to_nearest() -> None:
    given = problem(QuantizationArgs(**INT8), count=2)
    given["hessians"][1] = -given["hessians"][1]
    (W, _, fell_back), (ours, _, ours_fell_back) = both(given)
    assert fell_back.tolist() == ours_fell_back.tolist() == [False, True]
    assert torch.equal(ours[1], W[1])


def test_no_input_is_held_once_a_weight_is_quantized() -> None:
    with faster():
        x = torch.randn(2, 10, 8)
        base.accumulate_hessian(x, torch.nn.Linear(8, 4), torch.zeros(8, 8), torch.zeros(()))
        held = weakref.ref(x)
        del x
        assert held() is not None, "the next layer may read it too"
        base.quantize_weight(**problem(QuantizationArgs(**INT8)))
        assert held() is None


def test_hessians_of_a_shared_input_are_the_same_bits() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Linear(24, 8) for _ in range(3)]
    inputs = [torch.randn(2, 10, 24, dtype=torch.bfloat16) for _ in range(3)]
    found = []
    for accelerated in (False, True):
        sums = {layer: (torch.zeros(24, 24), torch.zeros(())) for layer in layers}
        with faster() if accelerated else nullcontext():
            for x in inputs:
                for layer in layers:
                    sums[layer] = base.accumulate_hessian(x, layer, *sums[layer])
        found.append(list(sums.values()))
    for (hessian, samples), (ours, our_samples) in zip(*found, strict=True):
        assert torch.equal(hessian, ours)
        assert samples == our_samples == 6


def smoothquant() -> Any:
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    return SmoothQuantModifier(smoothing_strength=0.8)


def gptq() -> Any:
    from llmcompressor.modifiers.gptq import GPTQModifier

    return GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"], actorder=None, dampening_frac=0.1)


def rounded() -> Any:
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"])


RECIPES: dict[str, tuple[Callable[[], list[Any]], int, int]] = {  # with runs of a block for each row, theirs and ours
    "SmoothQuant, GPTQ": (lambda: [smoothquant(), gptq()], 4, 3),
    "SmoothQuant, RTN": (lambda: [smoothquant(), rounded()], 2, 1),
    "GPTQ": (lambda: [gptq()], 2, 2),
}


@pytest.mark.parametrize("name", RECIPES)
def test_fewer_runs_of_a_block_do_and_the_model_moves_as_little(name: str, tmp_path: Path) -> None:
    from llmcompressor import oneshot

    recipe, *expected = RECIPES[name]
    folder = make_model(tmp_path / "base", layers=2)
    rows = calibration_set(TINY.calibration, small_tokenizer(), rows=8)
    given = {"dataset": rows.dataset(), "max_seq_length": 256, "num_calibration_samples": 8}
    ids = torch.tensor([list(range(5, 60))])
    with torch.no_grad():
        wanted = checkpoint.load(folder)(ids).logits
    runs, moved = [], []
    for accelerated in (False, True):
        model = checkpoint.load(folder)
        calls: list[int] = []
        model.model.layers[0].mlp.act_fn.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(0)
        with faster() if accelerated else nullcontext():
            oneshot(model=model, recipe=recipe(), **given)
        runs.append(len(calls) // 8)
        with torch.no_grad():
            moved.append(float((model(ids).logits - wanted).norm() / wanted.norm()))
    assert runs == expected
    assert moved[1] == pytest.approx(moved[0], rel=0.1)


def test_outside_of_the_block_llm_compressor_is_as_it_was(tmp_path: Path) -> None:
    before = base.quantize_weight, base.accumulate_hessian
    with quantizing(tmp_path / "out", make_model(tmp_path / "base"), log=tmp_path / "q.log") as job:
        assert base.quantize_weight is not before[0]
        job.save(job.load())
    assert (base.quantize_weight, base.accumulate_hessian) == before


def test_the_replaced_functions_take_what_llm_compressors_take() -> None:
    theirs = [list(inspect.signature(f).parameters) for f in (base.quantize_weight, base.accumulate_hessian)]
    with faster():
        ours = [list(inspect.signature(f).parameters) for f in (base.quantize_weight, base.accumulate_hessian)]
    assert ours == theirs


def fp8_codes(x: Tensor, scale: Tensor) -> Tensor:
    from compressed_tensors.quantization.lifecycle.forward import quantize

    args = QuantizationArgs(**SCHEMES["FP8"])
    return quantize(x=x, scale=scale, zero_point=None, args=args, dtype=torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_fp8_codes_are_the_same_bytes_by_one_conversion(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 320, dtype=dtype)
    x[0, :6] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, torch.finfo(dtype).smallest_normal])
    x[1] = 0
    scale = x.nan_to_num(0, 0, 0).abs().amax(1, keepdim=True) / 448  # zero for the second row
    scale[2] /= 2  # clamped
    before = x.clone()
    theirs = fp8_codes(x, scale)
    with faster():
        ours = fp8_codes(x, scale)
    assert theirs.dtype == ours.dtype == torch.float8_e4m3fn
    nan = theirs.float().isnan()
    assert nan.any()
    assert torch.equal(nan, ours.float().isnan())  # of either sign
    assert torch.equal(theirs.view(torch.uint8)[~nan], ours.view(torch.uint8)[~nan])
    assert torch.equal(x.nan_to_num(), before.nan_to_num())  # it is the quotient that is clamped in place


def test_other_codes_are_left_to_compressed_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    from compressed_tensors.quantization.lifecycle import forward, forward_helpers

    seen: list[QuantizationArgs] = []
    theirs = forward_helpers._quantize

    def watched(*given: Any) -> Tensor:
        seen.extend(each for each in given if isinstance(each, QuantizationArgs))
        return theirs(*given)

    x = torch.randn(8, 32)
    int8 = QuantizationArgs(**INT8)
    codes = forward.quantize(x=x, scale=torch.full((8, 1), 0.02), zero_point=None, args=int8, dtype=torch.int8)
    monkeypatch.setattr(forward_helpers, "_quantize", watched)
    with faster():
        again = forward.quantize(x=x, scale=torch.full((8, 1), 0.02), zero_point=None, args=int8, dtype=torch.int8)
        fp8_codes(x, torch.full((8, 1), 0.01))
    assert torch.equal(codes, again)
    assert seen == [int8]
