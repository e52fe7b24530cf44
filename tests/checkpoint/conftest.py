"""One small base model and its quantized checkpoints, made once by the real llm-compressor for this room's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.calibration import calibration_set
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
    data = {"dataset": rows.dataset(), "max_seq_length": 256, "num_calibration_samples": 8}
    linear = {"targets": "Linear", "ignore": ["lm_head"]}
    recipes = {
        "fp8": (QuantizationModifier(scheme="FP8_DYNAMIC", **linear), {}),
        "static": (QuantizationModifier(scheme="FP8", **linear), data),
        "int8": (QuantizationModifier(scheme="W8A8", **linear), {}),
        "w4a16": (QuantizationModifier(scheme="W4A16", **linear), {}),
        "mxfp4a16": (QuantizationModifier(scheme="MXFP4A16", **linear), {}),
        "nvfp4a16": (QuantizationModifier(scheme="NVFP4A16", **linear), {}),
        "head": (QuantizationModifier(scheme="FP8_DYNAMIC", targets="Linear"), {}),
        "smooth": (
            [SmoothQuantModifier(smoothing_strength=0.8), GPTQModifier(scheme="W8A8", actorder=None, **linear)],
            data,
        ),
    }
    folders = {}
    for name, (recipe, more) in recipes.items():
        folders[name] = base.parent / name
        with quantizing(folders[name], base, log=base.parent / "quantize.log") as job:
            model = job.load()
            oneshot(model=model, recipe=recipe, **more)
            job.save(model, rows if more else None)
    return folders
