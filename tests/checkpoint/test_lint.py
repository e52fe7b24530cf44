"""The linter: what it refuses is what the serving stack refuses, and it says which knob to turn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from labkit import checkpoint
from labkit.checkpoint import Finding
from labkit.engine import run_script
from labkit.hardware import Gpu, Machine
from labkit.manifest import MANIFEST
from labkit.profiles import TINY

from ..models import make_model
from .damage import copy_with_config

LAPTOP = Machine("a CPU", 8, 2**34, frozenset({"avx2", "avx512f", "avx512_vnni", "avx512_bf16"}))
OLD = Machine("an old CPU", 4, 2**33, frozenset({"avx2"}))
HOPPER = Machine("a CPU", 8, 2**34, frozenset({"avx2"}), (Gpu("H100", 80 * 2**30, "nvidia", (9, 0)),))
TURING = Machine("a CPU", 8, 2**34, frozenset({"avx2"}), (Gpu("T4", 16 * 2**30, "nvidia", (7, 5)),))


def on(folder: Path, machine: Machine = LAPTOP, **more: Any) -> list[Finding]:
    return checkpoint.lint(folder, "cuda" if machine.gpus else "cpu", machine=machine, **more)


def errors(findings: list[Finding]) -> list[str]:
    return [finding.what for finding in findings if finding.level == "error"]


def group(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["quantization_config"]["config_groups"]["group_0"]
    return found


def test_nothing_speaks_against_plain_and_int8_checkpoints_on_a_cpu(base: Path, quantized: dict[str, Path]) -> None:
    assert on(base) == []
    assert on(quantized["int8"]) == []
    assert on(quantized["smooth"]) == []


def test_every_scheme_of_the_labs_loads_on_a_hopper_gpu(quantized: dict[str, Path]) -> None:
    for name, folder in quantized.items():
        assert name == "head" or on(folder, HOPPER) == []


def test_static_fp8_is_refused_on_a_cpu_with_the_way_out(quantized: dict[str, Path]) -> None:
    (finding,) = on(quantized["static"])
    assert finding.level == "error"
    assert "fp8-w8a8-static does not run here" in finding.what
    assert "dynamic" in finding.fix


def test_fp8_without_fp8_hardware_is_a_warning(quantized: dict[str, Path]) -> None:
    for machine, verdict in ((LAPTOP, "emulated"), (TURING, "weights-only")):
        (finding,) = on(quantized["fp8"], machine)
        assert finding.level == "warning"
        assert f"fp8-w8a8-dynamic runs here, {verdict}" in finding.what


def test_int4_weights_need_avx512_on_a_cpu(quantized: dict[str, Path]) -> None:
    assert errors(on(quantized["w4a16"])) == []
    assert "w4a16 does not run here" in errors(on(quantized["w4a16"], OLD))[0]


def test_a_quantized_head_is_an_error_unless_a_target_names_it(quantized: dict[str, Path], tmp_path: Path) -> None:
    (error, warning) = on(quantized["head"], HOPPER)
    assert (error.level, warning.level) == ("error", "warning")
    assert "no target names it" in error.what
    assert 'targets=["Linear", "re:.*lm_head"]' in error.fix
    named = copy_with_config(
        quantized["head"], tmp_path / "m", lambda config: group(config).update(targets=["Linear", "re:.*lm_head"])
    )
    (warning,) = on(named, HOPPER)
    assert warning.level == "warning"
    assert 'ignore=["lm_head"]' in warning.fix


def test_config_and_tensors_that_disagree_are_an_error(quantized: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_with_config(
        quantized["int8"], tmp_path / "m", lambda config: group(config)["weights"].update(num_bits=4)
    )
    assert "config and tensors disagree" in errors(on(folder))[0]
    assert "(and 13 more)" in errors(on(folder))[0]


@pytest.mark.parametrize(("ordering", "level"), [("static", "warning"), ("weight", "warning"), ("group", "error")])
def test_an_activation_ordering_on_channel_wise_weights_is_found(
    quantized: dict[str, Path], tmp_path: Path, ordering: str, level: str
) -> None:
    folder = copy_with_config(
        quantized["smooth"], tmp_path / "m", lambda config: group(config)["weights"].update(actorder=ordering)
    )
    (finding,) = on(folder)
    assert finding.level == level
    assert "actorder=None" in finding.fix


@pytest.mark.parametrize(("name", "complaint"), [("dense", "stored as BF16"), ("my-format", "vLLM does not know")])
def test_a_format_that_vllm_does_not_serve_is_an_error(
    quantized: dict[str, Path], tmp_path: Path, name: str, complaint: str
) -> None:
    folder = copy_with_config(quantized["int8"], tmp_path / "m", lambda config: group(config).update(format=name))
    assert complaint in errors(on(folder))[0]


def test_another_quantization_method_is_left_to_others(base: Path, tmp_path: Path) -> None:
    folder = copy_with_config(
        base, tmp_path / "m", lambda config: config.update(quantization_config={"quant_method": "gptq"})
    )
    (finding,) = on(folder)
    assert finding.level == "warning"
    assert "'gptq'" in finding.what


def test_groups_that_do_not_divide_the_columns_are_an_error(quantized: dict[str, Path], tmp_path: Path) -> None:
    folder = copy_with_config(
        quantized["w4a16"], tmp_path / "m", lambda config: group(config)["weights"].update(group_size=96)
    )
    assert "groups of 96 do not divide its 256 columns" in " ".join(errors(on(folder, HOPPER)))


def test_head_sizes_without_a_cpu_kernel_are_an_error_on_a_cpu_only(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", head_dim=40)
    assert "attention heads of 40 channels" in errors(on(folder))[0]
    assert errors(on(folder, HOPPER)) == []


def test_an_fp8_kv_cache_needs_heads_of_a_multiple_of_32_channels_on_a_cpu(
    quantized: dict[str, Path], tmp_path: Path
) -> None:
    def with_cache(config: dict[str, Any]) -> None:
        cache = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
        config["quantization_config"]["kv_cache_scheme"] = cache

    folder = copy_with_config(quantized["int8"], tmp_path / "m", with_cache)
    assert checkpoint.inspect(folder).kv_cache == "fp8"
    assert errors(on(folder)) == []
    folder = copy_with_config(folder, tmp_path / "n", lambda config: config.update(head_dim=80))
    assert "multiple of 32 channels, not 80" in errors(on(folder))[0]


def test_more_tokens_than_the_model_has_positions_are_an_error(base: Path) -> None:
    assert errors(on(base, max_model_len=2048)) == []
    assert "serve 4,096 tokens, and the model was made for 2,048" in errors(on(base, max_model_len=4096))[0]


def test_a_missing_tokenizer_is_an_error_and_a_missing_template_a_warning(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "m")
    (folder / "chat_template.jinja").unlink()
    (finding,) = on(folder)
    assert (finding.level, "no chat template" in finding.what) == ("warning", True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    assert on(folder) == [], "older checkpoints keep the template in tokenizer_config.json"
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer" in errors(on(folder))[0]


def test_a_folder_that_is_no_checkpoint_is_one_finding(tmp_path: Path) -> None:
    (finding,) = on(tmp_path)
    assert finding.level == "error"
    assert "has no config.json" in finding.what


def test_errors_come_first(quantized: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(quantized["head"], tmp_path / "m", ignore=shutil.ignore_patterns(MANIFEST))
    (folder / "tokenizer.json").unlink()
    levels = [finding.level for finding in on(folder)]
    assert levels == sorted(levels, key=lambda level: level != "error")
    assert set(levels) == {"error", "warning"}


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
    folders = {"base": base, **quantized}
    for ordering in ("static", "group"):
        folders[f"ordered-{ordering}"] = copy_with_config(
            quantized["smooth"],
            tmp_path / ordering,
            lambda config, ordering=ordering: group(config)["weights"].update(actorder=ordering),
        )
    folders["head-named"] = copy_with_config(
        quantized["head"], tmp_path / "named", lambda config: group(config).update(targets=["Linear", "re:.*lm_head"])
    )
    folders["heads-of-48"] = make_model(tmp_path / "48", head_dim=48)
    folders["no-such-format"] = copy_with_config(
        quantized["int8"], tmp_path / "format", lambda config: group(config).update(format="my-format")
    )
    argument = {"folders": {name: str(folder) for name, folder in folders.items()}}
    log = tmp_path / "engine.log"
    served = run_script(SERVING, argument, log=log, engine=TINY.engine, offline=True, deadline_seconds=500)
    # Last and in a child of its own: it fails while running, and leaves the engine's process unusable.
    odd = make_model(tmp_path / "40", head_dim=40)
    argument = {"folders": {"heads-of-40": str(odd)}}
    served |= run_script(SERVING, argument, log=log, engine=TINY.engine, offline=True, deadline_seconds=200)
    folders["heads-of-40"] = odd
    refused = {name: why for name, why in served.items() if why}
    predicted = {name for name, folder in folders.items() if errors(checkpoint.lint(folder, max_model_len=256))}
    assert set(refused) == predicted, refused
