"""Bytes: predicted against what llm-compressor writes and a real forward holds; measured, and given back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from labkit.errors import DataError, UsageError
from labkit.memory import (
    QWEN_7B,
    activation_bytes,
    activation_parts,
    kv_cache_bytes,
    peak,
    process_bytes,
    release,
    weight_bytes,
)
from labkit.quantize import quantizing
from tests.models import make_model

SCHEMES = {"fp8-dynamic": "FP8_DYNAMIC", "fp8-static": "FP8", "int8-w8a8": "INT8", "w4a16": "W4A16"}
MIB = 2**20


# ---- weights


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real checkpoints of an untied Qwen2 (biases) and a tied Qwen3 (per-head norms), in BF16 and four schemes."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    folder = tmp_path_factory.mktemp("checkpoints")
    rows = {"dataset": Dataset.from_dict({"input_ids": [[1, 2, 3, 4]] * 2, "attention_mask": [[1] * 4] * 2})}
    rows |= {"max_seq_length": 4, "num_calibration_samples": 2}
    for base in (
        make_model(folder / "untied", "qwen2", hidden=512, layers=2),
        make_model(folder / "tied", "qwen3", hidden=512, layers=2, tied=True),
    ):
        for name, scheme in SCHEMES.items():
            with quantizing(folder / f"{base.name}--{name}", base, log=folder / "log") as job:
                model = job.load()
                recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
                oneshot(model=model, recipe=recipe, **(rows if scheme == "FP8" else {}))
                job.save(model)
    return folder


def stored(folder: Path) -> Counter[str]:
    """Bytes of a checkpoint's tensors by what they are."""
    found: Counter[str] = Counter()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                found[kind_of(name)] += opened.get_tensor(name).nbytes
    return found


def kind_of(name: str) -> str:
    if name.endswith(("_scale", "_shape", "_zero_point")):
        return "scales"
    kinds = {"embed_tokens": "embeddings", "lm_head": "lm_head", "_proj.weight": "linear"}
    return next((kind for part, kind in kinds.items() if part in name), "other")


@pytest.mark.parametrize("scheme", ["bf16", *SCHEMES])
@pytest.mark.parametrize("base", ["untied", "tied"])
def test_predicted_bytes_are_those_of_the_real_checkpoint(checkpoints: Path, base: str, scheme: Any) -> None:
    folder = checkpoints / (base if scheme == "bf16" else f"{base}--{scheme}")
    predicted = weight_bytes(checkpoints / base, scheme)
    assert predicted._asdict() == {kind: stored(folder)[kind] for kind in predicted._fields}
    on_disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert predicted.total == pytest.approx(on_disk, rel=0.01)
    assert weight_bytes(folder, scheme) == predicted, "a quantized checkpoint's own config says the same"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "granite", "mistral", "gemma"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_architecture_is_counted_to_the_byte(tmp_path: Path, architecture: Any, tied: bool) -> None:
    folder = make_model(tmp_path / "model", architecture, tied=tied)
    predicted = weight_bytes(folder, "bf16")
    assert predicted.total == stored(folder).total()
    assert (predicted.lm_head == 0) == tied


def test_the_7b_arithmetic_is_the_sum_of_its_parts_and_has_the_size_that_its_hub_page_lists_without_loading_it() -> (
    None
):
    with peak() as seen:
        assert weight_bytes(QWEN_7B, "bf16").total == 15_231_233_024
    assert seen.grown_bytes < 500e6
    hidden, kv, intermediate, vocabulary, layers = 3584, 512, 18944, 152064, 28
    linear = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * intermediate)
    channels = layers * (3 * hidden + 2 * kv + 2 * intermediate)
    found = weight_bytes(QWEN_7B, "int8-w8a8")
    assert (found.linear, found.scales) == (linear, 2 * channels)
    assert found.embeddings == found.lm_head == 2 * vocabulary * hidden
    assert found.other == 2 * (layers * (2 * hidden + hidden + 2 * kv) + hidden)


def test_an_lm_head_that_is_not_ignored_is_quantized_and_a_tied_one_becomes_its_own_tensor() -> None:
    kept, quantized = weight_bytes(QWEN_7B, "fp8-dynamic"), weight_bytes(QWEN_7B, "fp8-dynamic", ignore=())
    assert quantized.lm_head * 2 == kept.lm_head
    tied = {**QWEN_7B, "tie_word_embeddings": True}
    assert weight_bytes(tied, "fp8-dynamic").lm_head == weight_bytes(tied, "bf16", ignore=()).lm_head == 0
    assert weight_bytes(tied, "fp8-dynamic", ignore=()).lm_head == quantized.lm_head


def test_ignored_layers_stay_bf16_by_name_and_by_pattern() -> None:
    everything = weight_bytes(QWEN_7B, "int8-w8a8")
    for ignored, layers in ((r"re:.*\.down_proj", 28), ("model.layers.0.mlp.down_proj", 1)):
        kept = weight_bytes(QWEN_7B, "int8-w8a8", ignore=("lm_head", ignored))
        assert kept.linear - everything.linear == layers * 3584 * 18944


def test_dict_file_folder_and_transformers_config_are_one_thing(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "qwen2")
    loaded = transformers.AutoConfig.from_pretrained(folder)
    as_dict = json.loads((folder / "config.json").read_text())
    found = {weight_bytes(config, "w4a16") for config in (folder, str(folder), folder / "config.json", loaded, as_dict)}
    assert len(found) == 1


def test_what_is_not_a_config_is_an_error_that_says_so(tmp_path: Path) -> None:
    wrong = {"config.json can't be read": tmp_path, "no model_type": {"hidden_size": 8}}
    wrong["no architecture 'nonesuch'"] = {"model_type": "nonesuch"}
    for said, config in wrong.items():
        with pytest.raises(DataError, match=said):
            weight_bytes(config, "bf16")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="int8-w8a8"):
        weight_bytes(QWEN_7B, "int8")  # type: ignore[arg-type]


# ---- activations and the KV cache

ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "granite", "gemma", "gemma2", "gemma3_text"]
# Widths under which each moment of the forward is the fullest one.
SHAPES = {
    "mlp": {"vocab_size": 512, "intermediate_size": 768},
    "logits": {"vocab_size": 8000, "intermediate_size": 512},
    "attention": {"vocab_size": 512, "intermediate_size": 128, "num_attention_heads": 8},
}


class Counting(TorchDispatchMode):
    """Bytes of what operators of torch make in a block, alive now and at most; views and changed inputs hold nothing.

    Not the process's size, which also has what a kernel takes while it works and what the C library keeps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.highest_bytes = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        result = function(*args, **(kwargs or {}))
        for storage in [leaf.untyped_storage() for leaf in tree_leaves(result) if torch.is_tensor(leaf)]:
            if storage._cdata not in self.known | given:
                self.known.add(storage._cdata)
                self.live_bytes += storage.nbytes()
                weakref.finalize(storage, self.drop, storage._cdata, storage.nbytes())
        self.highest_bytes = max(self.highest_bytes, self.live_bytes)
        return result

    def drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live_bytes -= size


def measured(model: Any, batch: int, sequence: int) -> int:
    """Peak bytes of the tensors that one forward makes, weights not counted."""
    tokens = torch.randint(model.config.vocab_size, (batch, sequence))
    with torch.inference_mode():
        model(input_ids=tokens[:, :8], use_cache=False)  # whatever is made once and kept is made here
        with Counting() as counted:
            kept = model(input_ids=tokens, use_cache=False)  # as a caller keeps the logits
    del kept
    return counted.highest_bytes


def model_of(architecture: str, **fields: int) -> transformers.PreTrainedModel:
    shape = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"head_dim": 64, "max_position_embeddings": 4096, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(architecture, **(shape | fields))
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


@pytest.mark.parametrize("moment", SHAPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_predicted_peak_is_that_of_a_real_forward(architecture: str, moment: str) -> None:
    model = model_of(architecture, **SHAPES[moment])
    parts = activation_parts(model.config, 2, 512)
    assert getattr(parts, moment) == max(parts)
    assert parts.peak == pytest.approx(measured(model, 2, 512), rel=0.1)


@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_sliding_window_shorter_than_the_sequence_adds_its_mask(architecture: str, batch: int) -> None:
    model = model_of(architecture, **SHAPES["mlp"], sliding_window=256)
    assert activation_bytes(model.config, batch, 1024) == pytest.approx(measured(model, batch, 1024), rel=0.1)


def test_a_7b_models_kv_cache_takes_56_kib_a_token_and_half_of_that_in_fp8() -> None:
    assert kv_cache_bytes(QWEN_7B, 1, 1) == 2 * 28 * 4 * 128 * 2 == 56 * 1024
    assert kv_cache_bytes(QWEN_7B, 8, 4096, bytes_per_value=1) == 8 * 4096 * 28 * 1024
    own_head = {**QWEN_7B, "model_type": "qwen3", "head_dim": 256}
    assert kv_cache_bytes(own_head, 1, 1) == 2 * kv_cache_bytes(QWEN_7B, 1, 1)


def test_a_predicted_kv_cache_is_as_large_as_the_one_that_a_forward_fills() -> None:
    model = model_of("qwen3", **SHAPES["mlp"])
    with torch.inference_mode():
        cache = model(input_ids=torch.ones(2, 32, dtype=torch.long), use_cache=True).past_key_values
    held = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert kv_cache_bytes(model.config, 2, 32) == held


def test_a_7b_forward_is_dominated_by_its_logits() -> None:
    parts = activation_parts(QWEN_7B, 1, 2048)
    assert parts.logits == 2048 * (152064 + 3584) * 2 == activation_bytes(QWEN_7B, 1, 2048)


# ---- measured, and given back


def in_fresh_process(source: str, *arguments: str) -> Any:
    """What a script prints as JSON; alone in its process, since allocators remember what was there before."""
    done = subprocess.run([sys.executable, "-c", source, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


RELEASE = """
import json, sys
import torch, transformers
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from labkit.memory import process_bytes, release
folder, saved = sys.argv[1:]
torch.set_num_threads(1)
start = process_bytes()
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
if saved:
    oneshot(model=model, recipe=QuantizationModifier(targets="Linear", scheme="INT8", ignore=["lm_head"]))
    model.save_pretrained(saved, save_compressed=True)
else:
    with torch.inference_mode():
        model(input_ids=torch.ones(1, 32, dtype=torch.long))
also, head, size = model, model.lm_head, sum(p.nbytes for p in model.parameters())
freed = release(model)
kept = also is model and head.weight.is_meta and all(p.is_meta for p in model.parameters())
print(json.dumps({"size": size, "grown": freed.before_bytes - start, "freed": freed.freed_bytes, "kept": kept,
                  "since": process_bytes() - freed.after_bytes}))
"""


@pytest.mark.parametrize("quantized", [False, True])
def test_release_gives_back_a_model_although_names_still_point_to_it_also_what_llm_compressor_quantized_and_saved(
    tmp_path: Path, quantized: bool
) -> None:
    folder = make_model(tmp_path / "model", hidden=2048, layers=3, intermediate_size=16384)
    found = in_fresh_process(RELEASE, str(folder), str(tmp_path / "saved") if quantized else "")
    assert found["size"] > (250 if quantized else 500) * 10**6
    assert found["grown"] > 0.95 * found["size"]
    assert found["freed"] >= 0.9 * found["size"]
    assert abs(found["since"]) < 5 * MIB
    assert found["kept"]


def test_a_released_model_refuses_to_run_and_tensors_taken_out_before_stay_whole() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[1].weight = model[0].weight  # tied
    kept = model[0].weight.detach()
    copy = kept.clone()
    model(torch.ones(1, 4)).sum().backward()
    release(model)
    assert all(parameter.is_meta and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(kept, copy)
    with pytest.raises((RuntimeError, NotImplementedError)):
        model(torch.ones(1, 4)).sum().item()


def test_a_blocks_peak_is_seen_although_it_is_gone_at_its_end() -> None:
    def fill() -> None:
        block = torch.ones(400 * MIB, dtype=torch.uint8)
        time.sleep(0.2)
        raise ZeroDivisionError(block.shape)

    with peak() as outer:
        with pytest.raises(ZeroDivisionError), peak() as inner:  # a block that fails is measured too
            fill()
        with peak() as quiet:
            time.sleep(0.05)
    assert 390 * MIB < inner.grown_bytes < 600 * MIB
    assert outer.peak_bytes >= inner.peak_bytes
    assert quiet.grown_bytes < 100 * MIB
    assert process_bytes() < inner.peak_bytes - 300 * MIB


def test_memory_is_importable_without_torch() -> None:
    source = "import sys, labkit.memory; labkit.memory.process_bytes(); print(int('torch' in sys.modules))"
    assert in_fresh_process(source) == 0
