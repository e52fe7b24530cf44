"""Loads checkpoints strictly: what a folder lacks, or holds too much, is an error and not a random number.

transformers fills a tensor that a checkpoint lacks with random values and goes on; its loading report says so, and here
that report decides. Only safetensors are read (a pickle runs code when it is opened), and code that a repository brings
along is never run.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.errors import CheckpointError

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SHOW_BARS_BYTES = 2_000_000_000  # below, loading takes seconds and a bar is noise


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json; raises CheckpointError if it is missing or not JSON."""
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} has no config.json", why="so it is no checkpoint", fix="check the path"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}", fix="make or copy the checkpoint again") from error
    return config


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a loader reads: those of the index, else the single one.

    Raises CheckpointError if one is missing, or if only pickles are there.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: {error}", fix="make or copy the checkpoint again") from error
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise CheckpointError(
                f"{folder} lacks {', '.join(missing)}",
                why=f"its index lists {len(names)} files; tensors would be filled with random numbers",
                fix="copy or download the checkpoint again",
            )
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    raise CheckpointError(
        f"{folder} has no safetensors file" + (f", only {', '.join(pickles)}" if pickles else ""),
        why="a pickle can run any code when it is opened, so it is never loaded" if pickles else "there are no weights",
        fix="use a checkpoint in safetensors; save_pretrained() writes it",
    )


def refuse_unsafe(folder: Path) -> None:
    """Raises CheckpointError unless `folder` is a checkpoint with safetensors that needs no code of its own."""
    config = read_config(folder)
    if config.get("auto_map"):
        raise CheckpointError(
            f"{folder / 'config.json'} asks for code of its own (auto_map: {', '.join(config['auto_map'])})",
            why="labkit never runs code that a checkpoint brings along",
            fix="use a model whose architecture transformers has",
        )
    weight_files(folder)


def load(folder: Path, dtype: str = "auto") -> Any:
    """The model of a checkpoint, on the CPU, in evaluation mode; every tensor comes from the files.

    A compressed-tensors checkpoint is dequantized to dense weights while its activations are still rounded as the
    scheme says: this shows accuracy, not speed or memory. dtype: as transformers' `dtype`. Raises CheckpointError
    naming the missing, unexpected and misshapen tensors, or the damaged file. Tied tensors count as present.
    """
    import transformers

    refuse_unsafe(folder)
    quantized = "quantization_config" in read_config(folder)
    more = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)} if quantized else {}
    try:
        with _quiet_bars(folder):
            loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                output_loading_info=True,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are in the report, all at once and with names
                **more,
            )
    except Exception as error:  # a cut file, an unknown architecture, a config that contradicts itself, ...
        raise CheckpointError(
            f"{folder} can't be loaded: {type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}",
            why="a file is damaged, or this transformers does not know the architecture",
            fix="make or copy the checkpoint again; labkit_manifest.json, where there is one, has each file's SHA-256",
        ) from error
    model, report = loaded
    _judge(folder, report)
    return model.eval()


def _judge(folder: Path, report: dict[str, Any]) -> None:
    """Raises unless the loading report is clean."""
    misshapen = [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    found = {
        "missing": sorted(report["missing_keys"]),
        "unexpected": sorted(report["unexpected_keys"]),
        "of another shape than config.json says": sorted(misshapen),
    }
    complaints = [f"{what}: {_listed(names)}" for what, names in found.items() if names]
    complaints += [str(message) for message in report.get("error_msgs", [])]
    if complaints:
        raise CheckpointError(
            f"{folder} does not hold the tensors of its architecture; {'; '.join(complaints)}",
            why="transformers would fill what is missing with random numbers and go on",
            fix="make or copy the checkpoint again; if it was edited, restore config.json and the index too",
        )


def _listed(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@contextlib.contextmanager
def _quiet_bars(folder: Path) -> Iterator[None]:
    """Hides progress bars, which go to stderr, where loading takes only seconds."""
    if sum(path.stat().st_size for path in weight_files(folder)) > SHOW_BARS_BYTES:
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer beside a checkpoint; raises CheckpointError if there is none that loads without remote code."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError or the tokenizers library's own
        raise CheckpointError(
            f"the tokenizer in {folder} can't be loaded: {type(error).__name__}: {(str(error) or '-').splitlines()[0]}",
            why="without it text can't become the token ids that the model was trained on",
            fix="copy tokenizer.json, tokenizer_config.json and chat_template.jinja from the base model",
        ) from error
