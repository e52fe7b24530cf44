"""Inspection says what the files really hold; the linter refuses what the serving stack refuses, and says which knob to
turn."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from labkit import checkpoint
from labkit.checkpoint import Finding
from labkit.checkpoint.inspect import Quantization, scheme_name
from labkit.engine import run, run_source
from labkit.hardware import Gpu, Machine
from labkit.store import Context, Workspace

from ..models import make_model
from .damage import copy_with_config, copy_with_tensors

Q = "model.layers.1.self_attn.q_proj"
INT8 = {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}
LAPTOP = Machine("a CPU", 8, 2**34, frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}))
OLD = Machine("an old CPU", 4, 2**33, frozenset({"avx2"}))
HOPPER = Machine("a CPU", 8, 2**34, frozenset({"avx2"}), (Gpu("H100", 80 * 2**30, "nvidia", (9, 0)),))
TURING = Machine("a CPU", 8, 2**34, frozenset({"avx2"}), (Gpu("T4", 16 * 2**30, "nvidia", (7, 5)),))

Change = Callable[[dict[str, Any]], Any]


def group(**changes: Any) -> Change:
    """Changes the config group of a quantized checkpoint."""
    return lambda config: config["quantization_config"]["config_groups"]["group_0"].update(changes)


def part(name: str, **changes: Any) -> Change:
    """Changes how the config says that `weights` or `input_activations` are quantized."""
    return lambda config: config["quantization_config"]["config_groups"]["group_0"][name].update(changes)


def cached(**changes: Any) -> Change:
    """Adds an FP8 KV cache."""
    cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    return lambda config: config["quantization_config"].update(kv_cache_scheme=cache) or config.update(changes)


def nothing(config: dict[str, Any]) -> None:
    pass


# --- inspection -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("fp8", "fp8-w8a8-dynamic"),
        ("static", "fp8-w8a8-static"),
        ("int8", "int8-w8a8"),
        ("w4a16", "w4a16"),
        ("head", "fp8-w8a8-dynamic"),
    ],
)
def test_every_layer_has_the_scheme_of_its_recipe_and_every_byte_is_counted(
    base: Path, quantized: dict[str, Path], name: str, scheme: str
) -> None:
    found, plain = checkpoint.inspect(quantized[name], values=True), checkpoint.inspect(base)
    assert found.schemes == dict.fromkeys(plain.schemes, scheme) | {"lm_head": scheme if name == "head" else "bf16"}
    assert {layer.name: layer.shape for layer in found.layers} == {layer.name: layer.shape for layer in plain.layers}
    assert (found.mismatches, found.not_finite) == ((), ())
    assert found.total_bytes == sum(t.nbytes for t in load_file(quantized[name] / "model.safetensors").values())
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    assert found.parameters == plain.parameters == sum(p.numel() for p in model.parameters())
    if name == "int8":
        (layer,) = [layer for layer in found.layers if layer.name == Q]
        assert (layer.shape, str(layer.weights)) == ((128, 128), "INT8 per channel")


def test_a_tied_and_sharded_checkpoint_is_counted_once(tmp_path: Path) -> None:
    tied = checkpoint.inspect(make_model(tmp_path / "m", "qwen2", tied=True, shard_size="200KB"))
    untied = checkpoint.inspect(make_model(tmp_path / "u", "qwen2"))
    assert untied.total_bytes - tied.total_bytes == untied.part_bytes["lm_head"] > tied.part_bytes["lm_head"] == 0
    assert untied.not_finite is None, "values are read only when asked for"


@pytest.mark.parametrize(
    ("name", "lie", "complaint"),
    [
        ("int8", lambda c: c.pop("quantization_config"), f"{Q}: config.json says not quantized, the file holds I8"),
        ("int8", part("weights", strategy="tensor"), f"{Q}: config.json says INT8 per tensor, the scales have shape"),
        ("int8", part("weights", type="float"), f"{Q}: config.json says FP8 per channel, the file holds I8"),
        ("int8", part("input_activations", dynamic=False), f"{Q}: config.json says static activation scales, the file"),
        ("static", part("input_activations", dynamic=True), f"{Q}: config.json says no static activation scales, the"),
        (
            *("base", lambda c: c.update(quantization_config={"config_groups": {"all": INT8}})),
            "config.json says that the model is quantized, and no layer is",
        ),
    ],
)
def test_a_config_that_claims_something_else_is_reported(
    base: Path, quantized: dict[str, Path], tmp_path: Path, name: str, lie: Change, complaint: str
) -> None:
    found = checkpoint.inspect(copy_with_config(({"base": base} | quantized)[name], tmp_path / "m", lie))
    assert any(mismatch.startswith(complaint) for mismatch in found.mismatches)
    assert name != "base" or set(found.schemes.values()) == {"bf16"}, "what the tensors say counts"


@pytest.mark.parametrize(
    ("name", "tensor", "spoil"),
    [
        ("int8", "model.norm.weight", lambda tensor: tensor.view(-1)[3:4].fill_(float("nan"))),
        ("int8", f"{Q}.weight_scale", lambda tensor: tensor.view(-1)[3:4].fill_(float("inf"))),
        ("fp8", f"{Q}.weight", lambda tensor: tensor.view(torch.uint8)[2, 5:6].fill_(0xFF)),  # E4M3's NaN: all ones
    ],
)
def test_values_that_are_not_finite_are_found_by_name(
    quantized: dict[str, Path], tmp_path: Path, name: str, tensor: str, spoil: Any
) -> None:
    folder = copy_with_tensors(quantized[name], tmp_path / "m", lambda tensors: spoil(tensors[tensor]))
    assert checkpoint.inspect(folder, values=True).not_finite == (tensor,)


@pytest.mark.parametrize(
    ("weights", "activations", "name"),
    [
        (None, None, "bf16"),
        (("float", 8, 0), None, "fp8-weight-only"),
        (("int", 4, 128), ("float", 8, 0), "w4afp8"),
        (("float", 4, 16), ("float", 4, 16), "nvfp4"),
        (("float", 4, 32), ("float", 4, 32), "mxfp4"),
        (("float", 4, 16), None, "nvfp4a16"),
    ],
)
def test_schemes_have_the_names_of_the_capability_matrix(weights: Any, activations: Any, name: str) -> None:
    args = [form and Quantization(form[1], form[0], "group", group_size=form[2]) for form in (weights, activations)]
    assert scheme_name(*args) == name


# --- the linter -------------------------------------------------------------------------------------------------------


def on(folder: Path, machine: Machine = LAPTOP) -> list[Finding]:
    return checkpoint.lint(folder, "cuda" if machine.gpus else "cpu", machine)


def errors(findings: list[Finding]) -> list[str]:
    return [finding.what for finding in findings if finding.level == "error"]


NAMED = ["Linear", "re:.*lm_head"]
FOUND: list[tuple[str, Change, Machine, str, str, str]] = [
    ("static", nothing, LAPTOP, "error", "fp8-w8a8-static does not run here", "dynamic"),
    ("fp8", nothing, LAPTOP, "warning", "fp8-w8a8-dynamic is emulated here", ""),
    ("fp8", nothing, TURING, "warning", "fp8-w8a8-dynamic is weights-only here", ""),
    ("w4a16", nothing, OLD, "error", "w4a16 does not run here", ""),
    ("head", nothing, HOPPER, "error", "no target names it", 'targets=["Linear", "re:.*lm_head"]'),
    ("head", group(targets=NAMED), HOPPER, "warning", "lm_head is quantized", 'ignore=["lm_head"]'),
    ("int8", part("weights", num_bits=4), LAPTOP, "error", "(and 13 more)", "quantize and save it again"),
    ("smooth", part("weights", actorder="static"), LAPTOP, "warning", "ordering is 'static'", "actorder=None"),
    ("smooth", part("weights", actorder="group"), LAPTOP, "error", "which vLLM no longer loads", "actorder=None"),
    ("int8", group(format="dense"), LAPTOP, "error", "stored as BF16", "save_compressed=True"),
    ("int8", group(format="my-format"), LAPTOP, "error", "which vLLM does not know", "int-quantized"),
    ("w4a16", part("weights", group_size=96), HOPPER, "error", "groups of 96 do not divide its 256", "group size"),
    ("int8", cached(head_dim=80), LAPTOP, "error", "multiple of 32 channels, not 80", "BF16"),
    ("int8", cached(head_dim=40), LAPTOP, "error", "attention heads of 40 channels", "use a GPU"),
    (
        "base",
        lambda config: config.update(quantization_config={"quant_method": "gptq"}),
        *(LAPTOP, "warning", "quant_method is 'gptq'", "vLLM's documentation"),
    ),
]


@pytest.mark.parametrize("case", FOUND, ids=lambda case: case[4])
def test_what_speaks_against_a_checkpoint_is_found_with_the_way_out(
    base: Path, quantized: dict[str, Path], tmp_path: Path, case: tuple[str, Change, Machine, str, str, str]
) -> None:
    name, change, machine, level, what, fix = case
    found = on(copy_with_config(({"base": base} | quantized)[name], tmp_path / "m", change), machine)
    (finding,) = [finding for finding in found if what in finding.what]
    assert (finding.level, fix in finding.fix) == (level, True)
    assert bool(errors(found)) == (level == "error")
    levels = [finding.level for finding in found]
    assert levels == sorted(levels, key=lambda level: level != "error"), "errors come first"


def test_nothing_speaks_against_what_runs(base: Path, quantized: dict[str, Path], tmp_path: Path) -> None:
    assert on(base) == on(quantized["int8"]) == on(quantized["smooth"]) == []
    assert errors(on(quantized["w4a16"])) == []
    assert all(on(folder, HOPPER) == [] for name, folder in quantized.items() if name != "head")
    folder = copy_with_config(quantized["int8"], tmp_path / "m", cached())
    assert checkpoint.inspect(folder).kv_cache == "fp8"
    assert errors(on(folder)) == []
    assert errors(on(make_model(tmp_path / "40", head_dim=40), HOPPER)) == [], "only a CPU lacks the kernel"


def test_a_missing_tokenizer_is_an_error_and_a_missing_template_a_warning(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "m")
    (folder / "chat_template.jinja").unlink()
    (finding,) = on(folder)
    assert (finding.level, "no chat template" in finding.what) == ("warning", True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert on(folder) == [], "older checkpoints keep the template in tokenizer_config.json"
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in errors(on(folder))[0]
    (folder / "config.json").unlink()
    (finding,) = on(folder)
    assert (finding.level, "has no config.json" in finding.what) == ("error", True)


SERVING = """
import gc
from vllm import LLM, SamplingParams
answer = {}
for name, folder in job["folders"].items():
    try:
        llm = LLM(folder, max_model_len=256, enforce_eager=True, dtype="bfloat16", disable_log_stats=True)
        llm.generate(["one"], SamplingParams(max_tokens=2), use_tqdm=False)
        answer[name] = ""
        del llm
    except Exception as error:
        answer[name] = f"{type(error).__name__}: {error}"
    gc.collect()
"""


@pytest.mark.long
def test_the_linters_verdict_is_that_of_the_real_engine(base: Path, quantized: dict[str, Path], tmp_path: Path) -> None:
    folders = {"base": base, **quantized, "heads-of-48": make_model(tmp_path / "48", head_dim=48)}
    for name, source, change in (
        ("ordered-static", "smooth", part("weights", actorder="static")),
        ("ordered-group", "smooth", part("weights", actorder="group")),
        ("head-named", "head", group(targets=NAMED)),
        ("no-such-format", "int8", group(format="my-format")),
    ):
        folders[name] = copy_with_config(quantized[source], tmp_path / name, change)
    # In a child of its own: it fails while running, and leaves the engine's process unusable.
    odd = {"heads-of-40": make_model(tmp_path / "40", head_dim=40)}
    context, refused = Context(Workspace(tmp_path / "workspace")), set()
    for some in (folders, odd):
        job = {"source": SERVING, "folders": {name: str(folder) for name, folder in some.items()}}
        served = run(run_source, job, context, log=tmp_path / "engine.log", deadline_seconds=500)
        refused |= {name for name, why in served.items() if why}
    found = {name: checkpoint.lint(folder) for name, folder in (folders | odd).items()}
    assert refused == {name for name, findings in found.items() if errors(findings)}
