"""`labkit doctor`: this machine, what it can do, whether the environment is the locked one, which labs will run."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.hardware import SCHEMES, Build, Machine, capability, engine_build, stack_versions, this_machine
from labkit.ops import size, table
from labkit.ops.notebooks import Lab, Plan
from labkit.ops.provision import data_lacks
from labkit.ops.run import blocked_by_machine
from labkit.pace import expected, rounded_up
from labkit.profiles import EMBEDDED, Profile
from labkit.transfer import is_address, parse, peek

LOCKS = Path(__file__).parents[2] / "requirements"
FILES = {"cpu": ("torch-cpu.txt", "cpu.txt"), "gpu": ("gpu.txt",)}
LOCKED = re.compile(r"^([\w.-]+)(?:\[[\w,.-]+\])?==([^\s;\\]+)", re.MULTILINE)
# What a lab takes beside its model: a kernel and an engine with their libraries; logs and samples,
# and lab 04's own model with its variants. Estimates, rounded up: the doctor would rather warn too early.
LIBRARY_BYTES = 4 * 10**9
RUN_BYTES = 3 * 10**9
HUB_SECONDS = 10
STAYS_SHARE = 0.1  # of the BF16 bytes: embeddings and head, which a quantized variant keeps as they are


def diagnose(plan: Plan) -> dict[str, Any]:
    """Examines this machine for running the labs of a plan, as plain JSON values; starts no engine, loads no weights.

    in_the_way: what keeps every lab from running; lacks, of a lab: that included. about_seconds: where it is known.
    """
    import psutil

    machine, engine, profile, root = this_machine(), engine_build(), plan.profile, plan.workspace.root
    model, data = plan.parameters.get("model") or profile.model, plan.parameters.get("data", "")
    disk_free = shutil.disk_usage(next(folder for folder in (root, *root.parents) if folder.exists())).free
    lock = lock_state("gpu" if engine in ("cuda", "rocm") else "cpu")
    weight_bytes, unreachable = model_state(model)
    common = [unreachable] if unreachable else []
    if lock["missing"]:
        common.append(f"packages of the lock are not installed: {', '.join(lock['missing'])}; run `make labs` again")
    common += common_lacks(plan.labs, profile, weight_bytes, machine, engine, disk_free)
    if profile.needs_network:
        common += data_lacks(profile, data) if data else []
        if unreachable and not is_address(model):
            common.append(f"where there is a network: labkit fetch --profile {profile.name} FOLDER, and copy that here")
    labs = readiness(plan.labs, common)
    paces = {lab.name: expected(plan.workspace, lab.name, profile.name, machine.level) for lab in plan.labs}
    return {
        "machine": asdict(machine) | {"label": machine.label, "features": sorted(machine.features)},
        "available_bytes": psutil.virtual_memory().available,
        "disk_free_bytes": disk_free,
        "workspace": str(root),
        "engine": engine,
        "versions": stack_versions(),
        "capabilities": [asdict(capability(scheme)) for scheme in SCHEMES],
        "lock": lock,
        "profile": profile.name,
        "model": {"name": model, "weight_bytes": weight_bytes, "unreachable": unreachable},
        "in_the_way": common,
        "labs": labs,
        "about_seconds": {name: pace.seconds for name, pace in paces.items() if pace},
        "all_labs_run": all(lab["runs"] for lab in labs),
    }


def render(found: dict[str, Any]) -> str:
    """The diagnosis for the terminal."""
    machine, lock, about = found["machine"], found["lock"], found["about_seconds"]
    missing = [f"missing {', '.join(lock['missing'])}"] if lock["missing"] else []
    compared = f"differs from requirements/{lock['name']}.txt: {'; '.join(missing + lock['different'])}"
    if not lock["found"]:
        compared = f"there are no lock files in {LOCKS}, so the environment can't be compared"
    elif lock["equal"]:
        compared = f"equals requirements/{lock['name']}.txt"
    features = ", ".join(machine["features"]) or "no vector extensions"
    gpus = []
    for gpu in machine["gpus"]:
        version = ".".join(map(str, gpu["compute_capability"] or ()))
        gpus.append(f"{gpu['name']} ({f'compute capability {version}, ' * bool(version)}{size(gpu['memory_bytes'])})")
    facts = {
        "CPU": f"{machine['cpu']}, {machine['cores']} cores, {features}",
        "GPU": ", ".join(gpus) or "none",
        "memory": f"{size(machine['memory_bytes'])}, {size(found['available_bytes'])} of it free now",
        "disk": f"{size(found['disk_free_bytes']) or '0 B'} free at {found['workspace']}",
        "engine": f"vLLM {found['versions'].get('vllm', 'not installed')} ({found['engine']})",
        "versions": ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
        "lock": compared,
    }
    schemes, labs = [], []
    for row in found["capabilities"]:
        instead = f" Instead: {row['alternative']}" if row["alternative"] else ""
        schemes.append([row["scheme"], row["verdict"], f"{row['reason']}{instead}"])
    for lab in found["labs"]:
        own = "; ".join(lack for lack in lab["lacks"] if lack not in found["in_the_way"])
        takes = rounded_up(about[lab["lab"]]) if lab["lab"] in about else "unknown"
        labs.append([lab["lab"], "yes" if lab["runs"] else "no", takes, own])
    times = [about.get(lab["lab"], 0) for lab in found["labs"] if lab["runs"]]
    together = "unknown"
    if times and all(times):
        together = f"about {rounded_up(sum(times))}, by runs in this workspace or by one elsewhere and a probe"
    lines = [f"{name.ljust(8)}  {text}" for name, text in facts.items()]
    lines += ["", table(["scheme", "here", "why"], schemes), ""]
    lines += [f"profile {found['profile']}, model {found['model']['name']}"]
    lines += [f"no lab will run: {lack}" for lack in found["in_the_way"]]
    lines += [table(["lab", "will run", "about", "what is lacking"], labs), f"time of all that will run: {together}"]
    return "\n".join(lines)


# --- the model, and what labs lack ------------------------------------------------------------------------------------


def model_state(model: str) -> tuple[int, str]:
    """What is known of a model without fetching it: the bytes of its weights in BF16, and why it can't be had.

    It is looked for in the package, in a local folder, at an address, in the hub's cache, and on the hub (unless
    HF_HUB_OFFLINE is set). 0 bytes: unknown, or embedded.
    """
    from httpx import HTTPError

    from labkit.checkpoint import wanted
    from labkit.memory import weight_bytes

    if model == EMBEDDED:
        return 0, ""
    folder, why = Path(model).expanduser(), "is no folder, not in the hub's cache, and can't be fetched"
    try:
        if is_address(model):
            why = "can't be downloaded"
            config = peek(parse(model), "config.json", keep=wanted).decode()
        elif folder.is_dir() and not (folder / "config.json").is_file():
            return 0, f"the model folder {model} has no config.json"
        else:
            config = (folder / "config.json" if folder.is_dir() else _hub_config(model)).read_text(encoding="utf-8")
        return int(weight_bytes(json.loads(config), "bf16").total), ""
    except (LabError, HTTPError, OSError, ValueError) as error:  # no network, no permission, no valid name or config
        return 0, f"{model} {why}: {' '.join(str(error).split())[:300]}"


def _hub_config(model: str) -> Path:
    """A model's config.json from the hub's cache, else from the hub; a hub that does not answer is asked only once."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, "config.json", local_files_only=True))
    except LocalEntryNotFoundError:
        HfApi().model_info(model, timeout=HUB_SECONDS)
        return Path(hf_hub_download(model, "config.json"))


def readiness(labs: Sequence[Lab], common: Sequence[str]) -> list[dict[str, Any]]:
    """Whether each lab will run: what every lab lacks, then its own reasons and those of the labs that it needs."""
    found: list[dict[str, Any]] = []
    for lab in labs:  # in order, and labs need earlier ones only
        blocked = blocked_by_machine(lab)
        lacks = [*common, *([blocked.reason] if blocked else [])]
        if not common:
            stuck = [other["lab"] for other in found if other["lab"] in lab.needs and not other["runs"]]
            lacks += [f"needs {name}, which will not run" for name in stuck]
        found.append({"lab": lab.name, "runs": not lacks, "lacks": lacks})
    return found


def common_lacks(
    labs: Sequence[Lab], profile: Profile, weight_bytes: int, machine: Machine, engine: Build, disk_free_bytes: int
) -> list[str]:
    """What of engine, disk and memory stands in the way of every lab, each reason with its numbers.

    The baseline, the largest of all variants, must fit on the GPUs that the engine is to use; they are taken as alike.
    """
    from labkit.memory import gpus_needed

    lacks = ["no vLLM is installed; run `make labs` again"] if engine == "none" else []
    disk = disk_needed(labs, weight_bytes)
    if disk_free_bytes < disk:
        lacks.append(f"free disk at the workspace: {_gb(disk_free_bytes)}, needed about {_gb(disk)}")
    gpus = [gpu.memory_bytes for gpu in machine.gpus] if engine in ("cuda", "rocm") else []
    memory = LIBRARY_BYTES + weight_bytes + (0 if gpus else profile.engine.kv_cache_gib * 2**30)
    if machine.memory_bytes < memory:
        lacks.append(f"memory: {_gb(machine.memory_bytes)}, needed about {_gb(memory)}")
    if gpus:
        split, one = profile.engine.tensor_parallel, max(gpus) * profile.engine.gpu_memory_utilization
        needed = gpus_needed(weight_bytes, one)
        if split > len(gpus):
            lacks.append(f"GPUs: {len(gpus)}, and LABKIT_TENSOR_PARALLEL is {split}")
        elif split * one < weight_bytes:
            fix = f"set LABKIT_TENSOR_PARALLEL={needed}" if needed <= len(gpus) else f"this machine has {len(gpus)}"
            lacks.append(
                f"GPU memory that the engine may use: {_gb(split * one)} on {split} GPU{'s' * (split > 1)}, "
                f"the BF16 weights alone: {_gb(weight_bytes)}; this model needs {needed} such GPUs: {fix}"
            )
    return lacks


def disk_needed(labs: Sequence[Lab], weight_bytes: int) -> float:
    """Bytes that a workspace grows to about: what the labs keep of the model, logs and samples, the largest scratch."""

    def shares(copies: Iterable[int]) -> float:  # the bytes of copies of a model, as a multiple of its BF16 bytes
        return sum(min(1.0, bits / 16 + STAYS_SHARE) for bits in copies)

    kept = sum(shares(lab.keeps) for lab in labs)
    return RUN_BYTES + weight_bytes * (kept + max((shares(lab.scratch) for lab in labs), default=0.0))


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


# --- the lock ---------------------------------------------------------------------------------------------------------


def lock_state(name: str, folder: Path = LOCKS) -> dict[str, Any]:
    """This environment against the lock `cpu` or `gpu`: further packages (labkit, pip's own) don't matter.

    found: whether the lock's files are there.
    """
    files = [folder / file for file in FILES[name]]
    files = files if all(file.is_file() for file in files) else []
    locked, installed = locked_versions(files), installed_versions()
    missing, different = sorted(locked.keys() - installed.keys()), []
    for package in sorted(locked.keys() & installed.keys()):
        if installed[package] != locked[package]:
            different.append(f"{package}: installed {installed[package]}, locked {locked[package]}")
    facts = {"name": name, "found": bool(files), "missing": missing, "different": different}
    return facts | {"equal": bool(files) and not missing and not different}


def locked_versions(files: Sequence[Path]) -> dict[str, str]:
    """Package (normalized name) to exact version, by pip requirement files; a lock has no markers."""
    from packaging.utils import canonicalize_name

    found = [line for file in files for line in LOCKED.findall(file.read_text(encoding="utf-8"))]
    return {canonicalize_name(name): version for name, version in found}


def installed_versions() -> dict[str, str]:
    """Package (normalized name) to version, of everything that this interpreter finds."""
    from packaging.utils import canonicalize_name

    return {canonicalize_name(found.name): found.version for found in importlib.metadata.distributions() if found.name}
