"""Predicted KV cache and activations against what a real forward holds."""

import pytest
import torch
import transformers

from labkit.memory import (
    QWEN_7B,
    activation_bytes,
    activation_parts,
    claimed_activation_bytes,
    kv_cache_bytes,
    measure_forward,
)
from labkit.memory.measure import tensors_alive

ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "granite", "gemma", "gemma2", "gemma3_text"]
# Widths under which each moment of the forward is the fullest one.
SHAPES = {
    "mlp": {"vocab_size": 512, "intermediate_size": 768},
    "logits": {"vocab_size": 8000, "intermediate_size": 512},
    "attention": {"vocab_size": 512, "intermediate_size": 128, "num_attention_heads": 8},
}


def model_of(architecture: str, dtype: torch.dtype = torch.bfloat16, **fields: int) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.AutoConfig.for_model(
        architecture, **{**shape, "head_dim": 64, "max_position_embeddings": 4096, "pad_token_id": 0, **fields}
    )
    return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@pytest.mark.parametrize("dominant", SHAPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_predicted_peak_is_that_of_a_real_forward(architecture: str, dominant: str) -> None:
    model = model_of(architecture, **SHAPES[dominant])
    assert activation_parts(model.config, 2, 512).dominant == dominant
    assert activation_bytes(model.config, 2, 512) == pytest.approx(measure_forward(model, 2, 512), rel=0.1)


def test_the_prediction_holds_at_hundreds_of_megabytes() -> None:
    model = model_of("qwen2", vocab_size=50_000, intermediate_size=1024, num_hidden_layers=1)
    measured = measure_forward(model, 4, 1024)
    assert measured > 400e6
    assert activation_bytes(model.config, 4, 1024) == pytest.approx(measured, rel=0.1)


def test_the_prediction_holds_in_fp32_and_with_full_attention_heads() -> None:
    model = model_of("llama", torch.float32, **SHAPES["attention"], num_key_value_heads=8)
    assert activation_bytes(model.config, 1, 512, 4) == pytest.approx(measure_forward(model, 1, 512), rel=0.1)


@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_sliding_window_shorter_than_the_sequence_adds_its_mask(architecture: str, batch: int) -> None:
    model = model_of(architecture, **SHAPES["mlp"], sliding_window=256)
    assert activation_bytes(model.config, batch, 1024) == pytest.approx(measure_forward(model, batch, 1024), rel=0.1)


def test_a_view_and_a_changed_input_hold_nothing_and_what_was_dropped_is_gone() -> None:
    weight = torch.ones(1000)
    with tensors_alive() as counted:
        weight.view(10, 100).add_(1.0)
        first = weight + 1
        del first
        kept = weight * 2
    assert (counted.highest_bytes, counted.live_bytes) == (4000, 4000)
    assert kept[0] == 4


def test_measuring_twice_gives_the_same_bytes() -> None:
    model = model_of("llama", **SHAPES["mlp"])
    assert measure_forward(model, 1, 256) == measure_forward(model, 1, 256)


def test_a_7b_models_kv_cache_takes_56_kib_a_token_and_half_of_that_in_fp8() -> None:
    assert kv_cache_bytes(QWEN_7B, 1, 1) == 2 * 28 * 4 * 128 * 2 == 56 * 1024
    assert kv_cache_bytes(QWEN_7B, 8, 4096) == 8 * 4096 * 56 * 1024
    assert kv_cache_bytes(QWEN_7B, 8, 4096, bytes_per_value=1) * 2 == kv_cache_bytes(QWEN_7B, 8, 4096)


def test_a_predicted_kv_cache_is_as_large_as_the_one_that_a_forward_fills() -> None:
    model = model_of("qwen3", **SHAPES["mlp"])
    with torch.inference_mode():
        cache = model(input_ids=torch.ones(2, 32, dtype=torch.long), use_cache=True).past_key_values
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert kv_cache_bytes(model.config, 2, 32) == held


def test_the_head_size_is_the_configs_own_where_it_has_one() -> None:
    assert kv_cache_bytes({**QWEN_7B, "model_type": "qwen3", "head_dim": 256}, 1, 1) == 2 * kv_cache_bytes(
        QWEN_7B, 1, 1
    )


def test_a_7b_forward_is_dominated_by_its_logits_and_the_claim_is_half_of_it() -> None:
    parts = activation_parts(QWEN_7B, 1, 2048)
    assert parts.dominant == "logits"
    assert parts.logits == 2048 * (152064 + 3584) * 2
    assert parts.mlp == 2048 * (4 * 3584 + 3 * 18944) * 2
    assert activation_bytes(QWEN_7B, 1, 2048) == parts.peak == parts.logits
    assert claimed_activation_bytes(QWEN_7B, 1, 2048) == parts.peak // 2
