"""What an engine is started with: its environment, its temporary folder, the length that its model allows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from labkit import hardware, processes
from labkit.modelfolder import read_config, refuse_unsafe

if TYPE_CHECKING:
    from labkit.profiles import Engine

PACKED = "pack-quantized"  # compressed-tensors' format of W4A16
# vLLM 0.32 picks CUTLASS's kernel for INT8 on Blackwell, which refuses it; without it vLLM takes Triton's (vllm 54311).
NO_INT8_ON_BLACKWELL = "CutlassInt8ScaledMMLinearKernel"
LONGEST_SOCKET_FOLDER = 107 - len("/00000000-0000-0000-0000-000000000000")


def engine_env(engine: Engine, offline: bool) -> dict[str, str]:
    """The environment that an engine is started with; vLLM reads most of it when it is imported.

    Without `VLLM_CPU_KVCACHE_SPACE` (whole GiB) the CPU build takes what it finds and may refuse to start. One process
    for engine and caller (`VLLM_ENABLE_V1_MULTIPROCESSING=0`) starts faster and reports its errors as exceptions. A
    server's engine is a process of its own all the same; what that spares there is the CPU build's third one, the
    worker, and its talk with the engine: 32 requests to 24 narrow layers took 18 s with it and 14 s without, in INT8
    13.5 and 9.5, on two cores.
    """
    env = {
        # Threads that spin while they wait are quick on an idle machine. On a shared one they steal each other's time:
        # GPTQ on two busy cores took over 200 s with spinning threads and 27 s with passive ones.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(engine.kv_cache_gib))),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound threads of two engines would share one core
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    python = shutil.which(processes.engine_python())  # one that is not there is told of when it is to start
    if python and engine.enforce_eager and hardware.engine_build() == "cpu":
        # "Eager" spares the model from torch.compile, and not vLLM's helpers: the first prompt log-probability waited
        # 24 s for the ranks of its tokens to be compiled, in every process anew.
        env["TORCHDYNAMO_DISABLE"] = "1"
    gpu = hardware.this_machine().gpu_of(hardware.engine_build()) if python else None
    if gpu and (gpu.compute_capability or (0, 0)) >= (10, 0):
        others = os.environ.get("VLLM_DISABLED_KERNELS", "").split(",")
        env["VLLM_DISABLED_KERNELS"] = ",".join([*filter(None, others), NO_INT8_ON_BLACKWELL])
    if offline:
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    return env


def scratch_env(folder: Path) -> dict[str, str]:
    """Makes `folder` the temporary one of an engine: vLLM leaves sockets and stores there, several each time it ends.

    Where its path is too long for a socket's name (107 bytes) the engine keeps the usual one.
    """
    if len(os.fsencode(folder)) > LONGEST_SOCKET_FOLDER:
        return {}
    folder.mkdir()
    return {"TMPDIR": str(folder)}


def model_length(folder: Path, engine: Engine) -> int:
    """Tokens that an engine is started for: the profile's `max_model_len`, or what the model's positions allow.

    An engine refuses to be asked for more. Every use of one asks this before, so it is here that a folder which must
    not be loaded is refused: CheckpointError, from `labkit.modelfolder`.
    """
    config = refuse_unsafe(folder)
    text = config.get("text_config", config)
    return min(engine.max_model_len, int(text.get("max_position_embeddings") or engine.max_model_len))


def number_type(engine: Engine, checkpoint: Path | None = None) -> str:
    """What an engine computes in wherever nothing is quantized, in torch's and vLLM's words: "bfloat16", "float32".

    The engine's own `dtype`, or for "auto" what this machine is fast in: a CPU without units for BF16 converts
    it for every product, and vLLM is two to four times as fast in float32, for up to a third more memory (measured at
    avx2 and at vnni). The packed checkpoint of W4A16 is never served in float32 on a CPU, but in BF16: vLLM's kernel
    for it (`cpu_gemm_wna16`) has no float32.
    """
    row = hardware.capability("bf16")
    wanted = engine.dtype
    if wanted == "auto":
        wanted = "float32" if row.build == "cpu" and row.verdict == "emulated" else "bfloat16"
    if wanted == "float32" and row.build == "cpu" and checkpoint and (checkpoint / "config.json").is_file():
        quantization = read_config(checkpoint).get("quantization_config") or {}
        return "bfloat16" if quantization.get("format") == PACKED else wanted
    return wanted
