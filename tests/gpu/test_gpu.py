"""On a GPU the numerics give the same numbers, a quantize the codes that its kernels promise, and memory comes back.

Skipped where torch sees none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from labkit import checkpoint, memory
from labkit.hardware import this_machine
from labkit.numerics import E4M3, E5M2, INT8, Format, dequantize, gptq, hessian, quantize, scale_for
from labkit.numerics.formats import Granularity
from labkit.quantize import quantizing
from tests.conftest import ROOT
from tests.models import compress, make_model, rtn

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")]
SAME_AS_BEFORE_BYTES = 2**20  # what libraries keep on a device, such as cuBLAS's handles, is not torch's


def test_this_machine_is_the_one_that_torch_sees() -> None:
    found = [(gpu.name, gpu.compute_capability) for gpu in this_machine().gpus]
    seen = range(torch.cuda.device_count())
    assert found == [(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)) for i in seen]


@pytest.mark.parametrize("granularity", ["per-tensor", "per-channel", "per-token"])
@pytest.mark.parametrize("fmt", [E4M3, E5M2, INT8])
def test_rounding_gives_the_same_bits_as_on_the_cpu(fmt: Format, granularity: Granularity) -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 500, dtype=torch.bfloat16)
    scales = [scale_for(each, fmt, granularity) for each in (x, x.cuda())]
    assert torch.equal(scales[0], scales[1].cpu())
    codes = [quantize(x, scales[0], fmt), quantize(x.cuda(), scales[1], fmt).cpu()]
    assert torch.equal(codes[0].view(torch.int8), codes[1].view(torch.int8))
    assert torch.equal(dequantize(codes[0], scales[0]), dequantize(codes[1].cuda(), scales[1]).cpu())


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="no FP8 arithmetic below 8.9"
)
def test_the_matrix_units_multiply_what_the_codes_stand_for() -> None:
    torch.manual_seed(0)
    x, w = (torch.randn(64, 512, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    scale_x, scale_w = scale_for(x, E4M3, "per-token"), scale_for(w, E4M3, "per-channel")
    x8, w8 = quantize(x, scale_x, E4M3), quantize(w, scale_w, E4M3)
    found = torch._scaled_mm(x8, w8.t(), scale_x.float(), scale_w.float().t(), out_dtype=torch.bfloat16)
    meant = dequantize(x8, scale_x).double() @ dequantize(w8, scale_w).double().t()
    assert float((found.double() - meant).norm() / meant.norm()) < 0.004  # BF16's own rounding of the output


def test_gptq_chooses_grid_points_as_good_as_the_cpus() -> None:
    torch.manual_seed(0)
    W, x = torch.randn(128, 256), torch.randn(1024, 256) @ torch.randn(256, 256)
    errors = []
    for device in ("cpu", "cuda"):
        weights, inputs = W.to(device), x.to(device)
        scale = scale_for(weights, INT8, "per-channel")
        rounded = dequantize(gptq(weights, hessian(inputs), scale, INT8), scale)
        errors.append(float(((rounded - weights) @ inputs.T).norm()))
    assert errors[1] == pytest.approx(errors[0], rel=0.02)  # sums in another order round a few weights otherwise


QUANTIZE = """
import sys
from pathlib import Path
from tests.models import quantized, rtn
quantized(Path(sys.argv[2]), Path(sys.argv[1]), rtn("FP8_DYNAMIC"))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, `base`, quantized to FP8 on the GPU, `gpu`, and without it, `cpu`."""
    folder = tmp_path_factory.mktemp("made")
    make_model(folder / "base")
    for name, visible in (("gpu", os.environ.get("CUDA_VISIBLE_DEVICES", "0")), ("cpu", "")):
        command = [sys.executable, "-c", QUANTIZE, str(folder / "base"), str(folder / name)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": visible}
        subprocess.run(command, check=True, env=environment, cwd=ROOT, timeout=600)
    return folder


def test_a_quantize_rounds_each_weight_once_and_on_a_cpu_twice(made: Path) -> None:
    """compressed-tensors' kernel for Hopper and later rounds w / s from float32; elsewhere w / s is in BF16 first."""
    weights, gpu, cpu = (load_file(made / name / "model.safetensors") for name in ("base", "gpu", "cpu"))
    scales = {name.removesuffix("_scale"): scale for name, scale in cpu.items() if name.endswith("weight_scale")}
    once = torch.cuda.get_device_capability() >= (9, 0)
    for name, scale in scales.items():
        w = weights[name]
        assert torch.equal(gpu[f"{name}_scale"], scale)
        assert torch.equal(cpu[name].float(), quantize(w, scale, E4M3).float())
        on_gpu = quantize(w.float(), scale.float(), E4M3) if once else quantize(w, scale, E4M3)
        assert torch.equal(gpu[name].float(), on_gpu.float())
    rounded = {*scales, *(f"{name}_scale" for name in scales)}
    assert len(scales) == 14  # seven layers in each of two blocks
    assert all(torch.equal(gpu[name], cpu[name]) for name in cpu.keys() - rounded)


def test_a_shard_at_a_time_gives_the_same_tensors_as_the_whole_model(made: Path, tmp_path: Path) -> None:
    """Lab 01 checks it, and the two ways reach the GPU by different code of llm-compressor."""
    from llmcompressor import model_free_ptq

    model_free_ptq(made / "base", tmp_path, scheme="FP8_DYNAMIC", ignore=["lm_head", "re:.*embed_tokens$"])
    assert checkpoint.different_tensors(tmp_path, made / "gpu") == []


def test_the_gpus_memory_comes_back_after_a_quantize_although_a_variable_names_the_model(tmp_path: Path) -> None:
    base = make_model(tmp_path / "base")
    torch.ones(1, device="cuda")
    torch._C._cuda_clearCublasWorkspaces()  # of earlier tests: they would hide one that is left
    before = memory.device_bytes()
    with quantizing(tmp_path / "out", base, log=tmp_path / "q.log") as job:
        model = compress(job, rtn("FP8_DYNAMIC"))
    assert job.peak_bytes > 0
    assert memory.device_bytes() - before < SAME_AS_BEFORE_BYTES
    assert model is not None


def test_a_released_model_leaves_nothing_on_the_gpu() -> None:
    before = memory.device_bytes()
    model = torch.nn.Linear(4096, 4096, device="cuda")
    released = memory.release(model)
    assert released.where == "device"
    assert released.freed_bytes >= 4 * 4096 * 4096
    assert memory.device_bytes() - before < SAME_AS_BEFORE_BYTES
