"""Predicted bytes of weights against the bytes that llm-compressor really writes."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from safetensors import safe_open

from labkit.errors import DataError, UsageError
from labkit.memory import QWEN_7B, peak, weight_bytes
from labkit.memory.predict import tensors
from tests.models import make_model

SCHEMES = {"fp8-dynamic": "FP8_DYNAMIC", "fp8-static": "FP8", "int8-w8a8": "INT8", "w4a16": "W4A16"}
WIDTHS = {"I8": 1, "F8_E4M3": 1, "BF16": 2, "F32": 4, "I32": 4, "I64": 8}

# In a process of its own: llm-compressor keeps a session, and warns of things that are errors in these tests.
QUANTIZE = """
import sys
from pathlib import Path
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM

rows = Dataset.from_dict({"input_ids": [[1, 2, 3, 4]] * 2, "attention_mask": [[1] * 4] * 2})
for base in map(Path, sys.argv[2:]):
    for pair in sys.argv[1].split(","):
        name, scheme = pair.split("=")
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
        data = {"dataset": rows, "num_calibration_samples": 2} if scheme == "FP8" else {}
        oneshot(model=model, recipe=recipe, max_seq_length=4, **data)
        model.save_pretrained(base.with_name(f"{base.name}--{name}"), save_compressed=True)
"""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real checkpoints of an untied Qwen2 (biases) and a tied Qwen3 (per-head norms), in BF16 and four schemes."""
    folder = tmp_path_factory.mktemp("checkpoints")
    make_model(folder / "untied", "qwen2", hidden=512, layers=2)
    make_model(folder / "tied", "qwen3", hidden=512, layers=2, tied=True)
    schemes = ",".join(f"{name}={scheme}" for name, scheme in SCHEMES.items())
    command = [sys.executable, "-c", QUANTIZE, schemes, str(folder / "untied"), str(folder / "tied")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def stored(folder: Path) -> Counter[str]:
    """Bytes of a checkpoint's tensors by what they are, read from the headers of its files."""
    found: Counter[str] = Counter()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                tensor = opened.get_slice(name)
                size = WIDTHS[tensor.get_dtype()]
                for length in tensor.get_shape():
                    size *= length
                found[kind_of(name)] += size
    return found


def kind_of(name: str) -> str:
    if name.endswith(("_scale", "_shape", "_zero_point")):
        return "scales"
    if "embed_tokens" in name:
        return "embeddings"
    if name.startswith("lm_head"):
        return "lm_head"
    return "linear" if "_proj.weight" in name else "other"


@pytest.mark.parametrize("scheme", ["bf16", *SCHEMES])
@pytest.mark.parametrize("base", ["untied", "tied"])
def test_predicted_bytes_are_those_of_the_real_checkpoint(checkpoints: Path, base: str, scheme: str) -> None:
    folder = checkpoints / (base if scheme == "bf16" else f"{base}--{scheme}")
    predicted, real = weight_bytes(checkpoints / base, scheme), stored(folder)  # type: ignore[arg-type]
    for kind in ("embeddings", "lm_head", "linear", "scales", "other"):
        assert getattr(predicted, kind) == real[kind], kind
    on_disk = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert predicted.total == pytest.approx(on_disk, rel=0.01)


@pytest.mark.parametrize("scheme", ["fp8-dynamic", "int8-w8a8"])
def test_a_quantized_checkpoints_own_config_predicts_the_same(checkpoints: Path, scheme: str) -> None:
    quantized = checkpoints / f"untied--{scheme}"
    assert "quantization_config" in json.loads((quantized / "config.json").read_text())
    assert weight_bytes(quantized, scheme) == weight_bytes(checkpoints / "untied", scheme)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "granite", "mistral", "gemma"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_architecture_is_counted_to_the_byte(tmp_path: Path, architecture: str, tied: bool) -> None:
    folder = make_model(tmp_path / "model", architecture, tied=tied)  # type: ignore[arg-type]
    predicted = weight_bytes(folder, "bf16")
    assert predicted.total == stored(folder).total()
    assert (predicted.lm_head == 0) == tied


def test_the_7b_config_gives_the_size_that_its_hub_page_lists_without_loading_it() -> None:
    with peak() as memory:
        predicted = weight_bytes(QWEN_7B, "bf16")
    assert predicted.total == 15_231_233_024
    assert memory.grown_bytes < 500e6


def test_the_7b_arithmetic_is_the_sum_of_its_parts() -> None:
    hidden, kv, intermediate, vocabulary, layers = 3584, 512, 18944, 152064, 28
    linear = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * intermediate)
    channels = layers * (3 * hidden + 2 * kv + 2 * intermediate)
    found = weight_bytes(QWEN_7B, "int8-w8a8")
    assert (found.linear, found.scales) == (linear, 2 * channels)
    assert found.embeddings == found.lm_head == 2 * vocabulary * hidden
    assert found.other == 2 * (layers * (2 * hidden + hidden + 2 * kv) + hidden)
    assert 1.7 < weight_bytes(QWEN_7B, "bf16").total / found.total < 1.8


def test_an_lm_head_that_is_not_ignored_is_quantized_and_a_tied_one_becomes_its_own_tensor() -> None:
    kept, quantized = weight_bytes(QWEN_7B, "fp8-dynamic"), weight_bytes(QWEN_7B, "fp8-dynamic", ignore=())
    assert quantized.lm_head * 2 == kept.lm_head
    tied = {**QWEN_7B, "tie_word_embeddings": True}
    assert weight_bytes(tied, "fp8-dynamic").lm_head == 0
    assert weight_bytes(tied, "fp8-dynamic", ignore=()).lm_head == quantized.lm_head
    assert weight_bytes(tied, "bf16", ignore=()).lm_head == 0


def test_ignored_layers_stay_bf16_by_name_and_by_pattern() -> None:
    everything = weight_bytes(QWEN_7B, "int8-w8a8")
    no_down = weight_bytes(QWEN_7B, "int8-w8a8", ignore=("lm_head", r"re:.*\.down_proj"))
    assert no_down.linear - everything.linear == 28 * 3584 * 18944
    one = weight_bytes(QWEN_7B, "int8-w8a8", ignore=("lm_head", "model.layers.0.mlp.down_proj"))
    assert one.linear - everything.linear == 3584 * 18944


def test_an_asymmetric_w4a16_pays_for_its_zero_points() -> None:
    symmetric, asymmetric = (weight_bytes(QWEN_7B, "w4a16", symmetric=value) for value in (True, False))
    groups = 28 * ((2 * 3584 + 2 * 512 + 2 * 18944) * 28 + 3584 * 148)  # 28 groups of 128 in 3584 columns, 148 in 18944
    assert asymmetric.scales - symmetric.scales == groups // 2


def test_dict_file_folder_and_transformers_config_are_one_thing(checkpoints: Path) -> None:
    import transformers

    folder = checkpoints / "untied"
    loaded = transformers.AutoConfig.from_pretrained(folder)
    as_dict = json.loads((folder / "config.json").read_text())
    found = {weight_bytes(config, "w4a16") for config in (folder, str(folder), folder / "config.json", loaded, as_dict)}
    assert len(found) == 1


def test_a_tied_embedding_is_listed_once() -> None:
    kinds = Counter(tensor.kind for tensor in tensors({**QWEN_7B, "tie_word_embeddings": True, "num_hidden_layers": 1}))
    assert (kinds["embedding"], kinds["lm_head"], kinds["linear"]) == (1, 0, 7)


def test_what_is_not_a_config_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json"):
        weight_bytes(tmp_path, "bf16")
    with pytest.raises(DataError, match="model_type"):
        weight_bytes({"hidden_size": 8}, "bf16")
    with pytest.raises(DataError, match="no architecture 'nonesuch'"):
        weight_bytes({"model_type": "nonesuch"}, "bf16")
    with pytest.raises(UsageError, match="int8-w8a8"):
        weight_bytes(QWEN_7B, "int8")  # type: ignore[arg-type]
