"""From what a user calls a model (a folder, a hub id, an address) to its folder, and to its short name."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

from labkit.errors import CheckpointError, UsageError
from labkit.modelfolder import refuse_unsafe
from labkit.profiles import EMBEDDED, SPEED
from labkit.transfer import bring_to_cache, is_address, parse

WANTED_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "tokenizer*", "README.md"]
UNWANTED_FILES = ["original/*", "consolidated*", "*.gguf", "onnx/*"]  # the same weights again, in other formats


def wanted(name: str) -> bool:
    """Whether a file of a model repository is of use here, by its name."""

    def fits(patterns: list[str]) -> bool:
        return any(fnmatch(name, pattern) for pattern in patterns)

    return fits(WANTED_FILES) and not fits(UNWANTED_FILES)


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
        raise UsageError(
            f"no name can be made of the model {model!r}", fix="give a folder or a hub id with letters in it"
        )
    return f"{name}-folder" if name in (EMBEDDED, SPEED) else name


def resolve_model(model: str, *, offline: bool, cache: Path | None = None) -> Path:
    """The folder of a model: a local one as it is, a hub id's snapshot, downloaded unless `offline`, or an address.

    An address (`s3://bucket/prefix`, `hub:owner/name`) is brought below `cache`, verified. Only safetensors, configs
    and tokenizer files are fetched. Raises CheckpointError if there is no such folder or repository, if it can't be
    reached, or if it holds no safetensors; TransferError if an address can't be brought.
    """
    if is_address(model):
        if cache is None:
            raise UsageError(f"{model} is no local folder", fix=f"bring it here first: labkit fetch {model} FOLDER")
        folder = bring_to_cache(parse(model), cache, keep=wanted)
        refuse_unsafe(folder)
        return folder
    local = Path(model).expanduser()
    if local.exists():
        refuse_unsafe(local)
        return local.absolute()
    if model.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise CheckpointError(
            f"model is {model!r}, and there is no such folder ({local.absolute()})",
            fix="give a folder with config.json and *.safetensors, or a hub id such as Qwen/Qwen2.5-7B-Instruct",
        )
    folder = _download(model, offline)
    refuse_unsafe(folder)
    return folder


def _download(model: str, offline: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        found = snapshot_download(
            model, allow_patterns=WANTED_FILES, ignore_patterns=UNWANTED_FILES, local_files_only=offline
        )
    except GatedRepoError as error:
        fix = "accept its licence on the hub, then set HF_TOKEN to a token of yours that may read it"
        raise CheckpointError(f"the model {model} is gated: {error.args[0]}", fix=fix) from error
    except RepositoryNotFoundError as error:
        fix = "check the spelling; a private model needs HF_TOKEN"
        raise CheckpointError(f"the hub has no model {model}, or not for you", fix=fix) from error
    except Exception as error:  # whatever the network, the hub's client or the disk raised
        why = "nothing may be downloaded here" if offline else "the hub could not be reached"
        raise CheckpointError(
            f"the model {model} is not in this machine's hub cache, and {why} ({type(error).__name__})",
            fix="give a local folder: model = FOLDER with config.json, *.safetensors and the tokenizer's files",
        ) from error
    return Path(found)
