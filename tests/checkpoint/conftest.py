"""One small base model and its quantized checkpoints, made once by the real llm-compressor for this room's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labkit.data import calibration_set
from labkit.profiles import TINY
from labkit.quantize import quantizing

from ..models import make_model, small_tokenizer


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def quantized(base: Path) -> dict[str, Path]:
    """Folders by name; `head` has a quantized lm_head, `smooth` is SmoothQuant with GPTQ, `static` has input scales."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    rows = calibration_set(TINY.calibration, small_tokenizer(), rows=8)
    calibrated = {"dataset": rows.dataset(), "max_seq_length": 256, "num_calibration_samples": 8}
    linear = {"targets": "Linear", "ignore": ["lm_head"]}
    schemes = {"fp8": "FP8_DYNAMIC", "static": "FP8", "int8": "W8A8", "w4a16": "W4A16"}
    schemes |= {"mxfp4a16": "MXFP4A16", "nvfp4a16": "NVFP4A16"}
    recipes: dict[str, Any] = {name: QuantizationModifier(scheme=scheme, **linear) for name, scheme in schemes.items()}
    recipes["head"] = QuantizationModifier(scheme="FP8_DYNAMIC", targets="Linear")
    gptq = GPTQModifier(scheme="W8A8", actorder=None, **linear)
    recipes["smooth"] = [SmoothQuantModifier(smoothing_strength=0.8), gptq]
    folders = {}
    for name, recipe in recipes.items():
        folders[name] = base.parent / name
        more = calibrated if name in ("static", "smooth") else {}
        with quantizing(folders[name], base, log=base.parent / "quantize.log") as job:
            model = job.load()
            oneshot(model=model, recipe=recipe, **more)
            job.save(model, rows if more else None)
    return folders
