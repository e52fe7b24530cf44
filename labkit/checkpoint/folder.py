"""The folder of a model: where it comes from, its config, and the tensors of its safetensors files.

Whatever reads a model, or hands its folder to an engine, calls `refuse_unsafe` first: no pickle, no code of the model's
own, no damaged file.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import CheckpointError, UsageError
from labkit.files import MANIFEST, is_safe_name, verify_manifest
from labkit.profiles import EMBEDDED, SPEED
from labkit.transfer import download_to_cache, is_address, parse

if TYPE_CHECKING:
    import torch

AGAIN = "make or copy the checkpoint again"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "tokenizer*", "README.md"]
UNWANTED_FILES = ["original/*", "consolidated*", "*.gguf", "onnx/*"]  # the same weights again, in other formats
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
OWN_LICENSE = "apache-2.0"  # labkit's own models come with it


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json; raises CheckpointError if it is missing or not JSON."""
    path = folder / "config.json"
    try:
        return {**json.loads(path.read_bytes())}  # a TypeError if it is no object
    except FileNotFoundError as error:
        why = "nothing else says which model this is"
        raise CheckpointError(f"{folder} has no config.json", why, "check the path") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read: {type(error).__name__}: {error}", fix=AGAIN) from error


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a loader reads: those of the index, else the single one.

    Raises CheckpointError if one is missing, or if only pickles are there.
    """
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
            if strange := [name for name in names if "/" in name or not is_safe_name(name)]:
                raise ValueError(f"{strange[0]!r} is no file of the folder")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{folder / INDEX} is damaged: {error}", fix=AGAIN) from error
        if missing := [name for name in names if not (folder / name).is_file()]:
            why = f"its index lists {len(names)} files; tensors would be filled with random numbers"
            raise CheckpointError(f"{folder} lacks {', '.join(missing)}", why, AGAIN)
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    raise CheckpointError(
        f"{folder} has no safetensors file" + (f", only {', '.join(pickles)}" if pickles else ""),
        why="a pickle can run any code when it is opened, so it is never loaded" if pickles else "there are no weights",
        fix="use a checkpoint in safetensors; save_pretrained() writes it",
    )


def refuse_unsafe(folder: Path) -> dict[str, Any]:
    """The config of a checkpoint that may be loaded.

    Raises CheckpointError unless it has safetensors, needs no adapter and no code of its own, and is as its manifest
    says, if it has one.
    """
    if (folder / MANIFEST).is_file():
        verify_manifest(folder, quick=True)
    if (folder / "adapter_config.json").is_file():
        fix = "merge it into its base first: peft's merge_and_unload(), then save_pretrained()"
        raise CheckpointError(f"{folder} has a LoRA adapter", "it would be left out without a word", fix)
    config = read_config(folder)
    if config.get("auto_map"):
        raise CheckpointError(
            f"{folder / 'config.json'} asks for code of its own (auto_map: {', '.join(config['auto_map'])})",
            why="labkit never runs code that a checkpoint brings along",
            fix="use a model whose architecture transformers has",
        )
    weight_files(folder)
    return config


# --- tensors ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor. dtype is safetensors' name: BF16, I8, F8_E4M3, I32, ... begin: where it begins in `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    file: Path
    begin: int


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of a checkpoint by name, in the order stored, from the headers of its files: no weight is read.

    Raises CheckpointError for a cut or damaged file, which it names.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, TensorInfo] = {}
    for path in weight_files(folder):
        try:
            with open(path, "rb") as raw, safe_open(path, "np") as file:  # which checks that header and file agree
                begin = 8 + int.from_bytes(raw.read(8), "little")  # the data follow the header, tensor after tensor
                for name in file.offset_keys():
                    tensor = file.get_slice(name)
                    dtype, shape = tensor.get_dtype(), tuple(tensor.get_shape())
                    bits = int((re.findall(r"\d+", dtype) or "8")[0])  # BF16, F8_E4M3, ...; only BOOL has no number
                    size = math.prod(shape) * bits // 8
                    found[name] = TensorInfo(name, dtype, shape, size, path, begin)
                    begin += size
        except (SafetensorError, OSError) as error:
            what, why = f"{path} is not a whole safetensors file: {error}", "it was cut or overwritten"
            raise CheckpointError(what, why, AGAIN) from error
    return found


def read_tensor(tensor: TensorInfo) -> torch.Tensor:
    """A stored tensor, on the CPU."""
    from safetensors import safe_open

    with safe_open(tensor.file, "pt") as file:
        found: torch.Tensor = file.get_tensor(tensor.name)
    return found


def different_tensors(one: Path, other: Path) -> list[str]:
    """Names of the tensors that only one of two checkpoints has, or that differ in dtype, shape or a single bit.

    It does not matter how they are cut into files. One pair of tensors is in memory at a time.
    """
    import torch

    def same(a: TensorInfo | None, b: TensorInfo | None) -> bool:
        if not a or not b or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        left, right = (read_tensor(tensor).reshape(-1).view(torch.uint8) for tensor in (a, b))
        return torch.equal(left, right)

    ours, theirs = read_headers(one), read_headers(other)
    return [name for name in sorted({**ours, **theirs}) if not same(ours.get(name), theirs.get(name))]


# --- where a model comes from -----------------------------------------------------------------------------------------


def wanted(name: str) -> bool:
    """Whether a file of a model repository is of use here, by its name."""
    fits = any(fnmatch(name, pattern) for pattern in WANTED_FILES)
    return fits and not any(fnmatch(name, pattern) for pattern in UNWANTED_FILES)


def short_name(model: str) -> str:
    """The model's name in folders and the ledger: the last part of a hub id or path, in letters, digits, '.', '_', '-'.

    `Qwen/Qwen2.5-7B-Instruct` is `Qwen2.5-7B-Instruct`; a snapshot in the hub's cache has its repository's name.
    """
    path = Path(parse(model).last if is_address(model) else model)
    last = path.name or path.absolute().name
    if path.parent.name == "snapshots":
        last = path.parent.parent.name.split("--")[-1]
    name = re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9._-]+", "-", last)).strip("-._")  # "--" parts model and variant
    if not name:
        fix = "give a folder or a hub id with letters in it"
        raise UsageError(f"no name can be made of the model {model!r}", fix=fix)
    return f"{name}-folder" if name in (EMBEDDED, SPEED) else name


def resolve_model(model: str, *, offline: bool, cache: Path | None = None) -> Path:
    """The folder of a model: a local one as it is, a hub id's snapshot, downloaded unless `offline`, or an address.

    An address (`s3://bucket/prefix`, `hub:owner/name`) is downloaded below `cache`, and verified. Only safetensors,
    configs and tokenizer files are fetched. Raises CheckpointError if there is no such folder or repository, if it
    can't be reached, or if it is refused (`refuse_unsafe`); TransferError if an address can't be downloaded.
    """
    local = Path(model).expanduser()
    if is_address(model):
        if cache is None:
            raise UsageError(f"{model} is no local folder", fix=f"download it first: labkit fetch {model} FOLDER")
        folder = download_to_cache(parse(model), cache, keep=wanted)
    elif local.exists():
        folder = local.absolute()
    elif HUB_ID.fullmatch(model):
        folder = _from_hub(model, offline)
    else:
        raise CheckpointError(
            f"model is {model!r}, and there is no such folder ({local.absolute()})",
            fix="give a folder with config.json and *.safetensors, or a hub id such as Qwen/Qwen2.5-7B-Instruct",
        )
    refuse_unsafe(folder)
    return folder


def _from_hub(model: str, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    files: dict[str, Any] = {"allow_patterns": WANTED_FILES, "ignore_patterns": UNWANTED_FILES}
    try:
        return Path(snapshot_download(model, local_files_only=offline, **files))
    except GatedRepoError as error:
        fix = "accept its licence on the hub, then set HF_TOKEN to a token of yours that may read it"
        raise CheckpointError(f"the model {model} is gated: {error.args[0]}", fix=fix) from error
    except RepositoryNotFoundError as error:
        fix = "check the spelling; a private model needs HF_TOKEN"
        raise CheckpointError(f"the hub has no model {model}, or not for you", fix=fix) from error
    except Exception as error:  # whatever the network, the hub's client or the disk raised
        why = "nothing may be downloaded here" if offline else "the hub could not be reached"
        what = f"the model {model} is not in this machine's hub cache, and {why} ({type(error).__name__})"
        fix = "give a local folder: model = FOLDER with config.json, *.safetensors and the tokenizer's files"
        raise CheckpointError(what, fix=fix) from error


def origin(source: str, folder: Path) -> dict[str, str]:
    """`base_model` (a hub id, "" for a local folder) and `license` ("" if unknown) of the model `source` in `folder`.

    A quantized model passes both on. The licence is the one in the metadata of the model's own card; a local folder's
    path is nobody's business once the model is published.
    """
    from huggingface_hub.repocard import metadata_load

    if source in (EMBEDDED, SPEED):
        return {"base_model": "", "license": OWN_LICENSE}
    name = source.removeprefix("hub:").partition("@")[0]
    known = HUB_ID.fullmatch(name) and not Path(source).expanduser().exists()
    try:
        found = (metadata_load(folder / "README.md") or {}).get("license", "")
    except (ValueError, OSError):  # no card, or a card that is none, says nothing
        found = ""
    return {"base_model": name if known else "", "license": found if isinstance(found, str) else ""}
