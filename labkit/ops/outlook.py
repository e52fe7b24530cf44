"""Which labs will run on this machine, and what each of the others lacks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.ops.notebooks import Lab
from labkit.ops.runner import blocked_by_machine
from labkit.profiles import EMBEDDED, Engine, Profile
from labkit.transfer import is_address, parse, peek

# What a lab takes beside its model: a kernel and an engine with their libraries; logs and samples,
# and lab 04's own model with its variants. Estimates, rounded up: the doctor would rather warn too early.
LIBRARY_BYTES = 4 * 10**9
RUN_BYTES = 3 * 10**9
HUB_SECONDS = 10
BF16_BITS = 16
STAYS_SHARE = 0.1  # of the BF16 bytes: embeddings and head, which a quantized variant keeps as they are


@dataclass(frozen=True)
class Resources:
    """What this machine has to offer: free disk at the workspace, and memory in all, both in bytes."""

    disk_free_bytes: int
    memory_bytes: int
    gpu_memory_bytes: int  # of the largest GPU; 0 without one
    engine: str  # the installed build: cpu, cuda, rocm, none
    gpus: int = 1  # how many there are; taken to be alike


@dataclass(frozen=True)
class ModelState:
    """What is known of the profile's model without fetching it: BF16 bytes (0: unknown), and why it can't be had."""

    name: str
    weight_bytes: int
    unreachable: str = ""


@dataclass(frozen=True)
class Outlook:
    """Whether one lab will run here; `lacks` says what is missing, each with its number."""

    lab: str
    runs: bool
    lacks: tuple[str, ...]


def model_state(model: str) -> ModelState:
    """Looks for a model: embedded, a local folder, in the hub's cache, or on the hub (unless HF_HUB_OFFLINE is set)."""
    if model == EMBEDDED:
        return ModelState(model, 0)
    folder = Path(model).expanduser()
    if is_address(model):
        from labkit.checkpoint import wanted

        try:
            read = peek(parse(model), "config.json", keep=wanted)
            return ModelState(model, bf16_bytes(json.loads(read)))
        except (LabError, ValueError) as error:
            return ModelState(model, 0, f"{model} can't be brought: {' '.join(str(error).split())[:300]}")
    if folder.is_dir():
        config = folder / "config.json"
        if not config.is_file():
            return ModelState(model, 0, f"the model folder {model} has no config.json")
    else:
        from httpx import HTTPError

        try:
            config = _hub_config(model)
        except (HTTPError, OSError, ValueError) as error:  # no network, no such model, no permission, no valid id
            reason = " ".join(str(error).split())[:160]
            return ModelState(model, 0, f"{model} is no folder, not in the hub's cache, and can't be fetched: {reason}")
    return ModelState(model, bf16_bytes(json.loads(config.read_text(encoding="utf-8"))))


def _hub_config(model: str) -> Path:
    """A model's config.json from the hub's cache, else from the hub; a hub that does not answer is asked only once."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, "config.json", local_files_only=True))
    except LocalEntryNotFoundError:
        HfApi().model_info(model, timeout=HUB_SECONDS)
        return Path(hf_hub_download(model, "config.json"))


def bf16_bytes(config: dict[str, Any]) -> int:
    """Bytes of a model's weights in BF16, from its config."""
    from labkit.memory import weight_bytes

    return int(weight_bytes(config, "bf16").total)


def outlooks(labs: Sequence[Lab], common: Sequence[str]) -> tuple[Outlook, ...]:
    """The outlook of every lab: what every lab lacks, then its own reasons and those of the labs that it needs."""
    found: dict[str, Outlook] = {}
    for lab in labs:  # in order, and labs need earlier ones only
        blocked = blocked_by_machine(lab)
        own = [blocked.reason] if blocked else []
        needed = [f"needs {name}, which will not run" for name in lab.needs if name in found and not found[name].runs]
        lacks = (*common, *own, *([] if common else needed))
        found[lab.name] = Outlook(lab.name, not lacks, lacks)
    return tuple(found.values())


def common_lacks(
    labs: Sequence[Lab], profile: Profile, model: ModelState, here: Resources, missing_packages: Sequence[str]
) -> list[str]:
    """What stands in the way of every lab of this profile and model, each reason with its numbers."""
    lacks = []
    if missing_packages:
        lacks.append(f"packages of the lock are not installed: {', '.join(missing_packages)}; run `make labs` again")
    if here.engine == "none":
        lacks.append("no vLLM is installed; run `make labs` again")
    if model.unreachable:
        lacks.append(model.unreachable)
    disk = disk_needed(labs, model.weight_bytes)
    if here.disk_free_bytes < disk:
        lacks.append(f"free disk at the workspace: {_gb(here.disk_free_bytes)}, needed about {_gb(disk)}")
    on_gpu = here.gpu_memory_bytes > 0 and here.engine in ("cuda", "rocm")
    memory = LIBRARY_BYTES + model.weight_bytes + (0 if on_gpu else profile.engine.kv_cache_gib * 2**30)
    if here.memory_bytes < memory:
        lacks.append(f"memory: {_gb(here.memory_bytes)}, needed about {_gb(memory)}")
    if on_gpu:
        lacks += gpu_lacks(profile.engine, model, here)
    return lacks


def disk_needed(labs: Sequence[Lab], weight_bytes: int) -> float:
    """Bytes that a workspace grows to about: what the labs keep of the model, logs and samples, the largest scratch."""
    kept = sum(_shares(lab.keeps) for lab in labs)
    return RUN_BYTES + weight_bytes * (kept + max((_shares(lab.scratch) for lab in labs), default=0.0))


def _shares(copies: Sequence[int]) -> float:
    """The bytes of copies of a model, given by the bits of their weights, as a multiple of its BF16 bytes."""
    return sum(min(1.0, bits / BF16_BITS + STAYS_SHARE) for bits in copies)


def gpu_lacks(engine: Engine, model: ModelState, here: Resources) -> list[str]:
    """Whether the baseline, the largest of all variants, fits on the GPUs that the engine is to use."""
    from labkit.memory import gpus_needed

    split, one = engine.tensor_parallel, here.gpu_memory_bytes * engine.gpu_memory_utilization
    if split > here.gpus:
        return [f"GPUs: {here.gpus}, and LABKIT_TENSOR_PARALLEL is {split}"]
    if split * one >= model.weight_bytes:
        return []
    needed = gpus_needed(model.weight_bytes, one)
    found = f"{_gb(split * one)} on {split} GPU{'s' * (split > 1)}, the BF16 weights alone: {_gb(model.weight_bytes)}"
    fix = f"this model needs {needed} such GPUs: " + (
        f"set LABKIT_TENSOR_PARALLEL={needed}" if needed <= here.gpus else f"this machine has {here.gpus}"
    )
    return [f"GPU memory that the engine may use: {found}; {fix}"]


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
