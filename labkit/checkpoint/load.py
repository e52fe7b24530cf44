"""Loads checkpoints strictly: what a folder lacks, or holds too much, is an error and not a random number.

transformers fills a tensor that a checkpoint lacks with random values and goes on; its loading report says so, and here
that report decides. Only safetensors are read, and no code that a repository brings along is run.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.checkpoint.headers import read_headers
from labkit.checkpoint.inspect import inspect, odd_scales
from labkit.errors import CheckpointError
from labkit.modelfolder import refuse_unsafe, weight_files

MOST_NAMED = 5
SHOW_BARS_BYTES = 2_000_000_000  # below, loading takes seconds and a bar is noise


def load(folder: Path, dtype: str = "auto") -> Any:
    """The model of a checkpoint, on the CPU, in evaluation mode; every tensor comes from the files.

    A compressed-tensors checkpoint is dequantized to dense weights while its activations are still rounded as the
    scheme says: this shows accuracy, not speed or memory. dtype: as transformers' `dtype`. Raises CheckpointError
    naming the missing, unexpected and misshapen tensors, or the damaged file. Tied tensors count as present.
    """
    import transformers

    quantized = "quantization_config" in refuse_unsafe(folder)
    more = {"quantization_config": transformers.CompressedTensorsConfig(dequantize=True)} if quantized else {}
    try:
        with _quiet_bars(folder), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You passed `quantization_config`")  # to say "dequantize", as meant
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
        if lost := _scales_without_weights(folder):
            _judge(folder, {"missing_keys": lost}, [])
        raise CheckpointError(
            f"{folder} can't be loaded: {type(error).__name__}: {(str(error) or 'no message').splitlines()[0]}",
            why="a file is damaged, or this transformers does not know the architecture",
            fix="make or copy the checkpoint again; labkit_manifest.json, where there is one, has each file's SHA-256",
        ) from error
    model, report = loaded
    _judge(folder, report, _misshapen(model))
    if quantized:
        _refuse_another_scheme(folder)
    return model.eval()


def _refuse_another_scheme(folder: Path) -> None:
    """Raises CheckpointError if the tensors are not what config.json calls them; they load all the same."""
    wrong = [*inspect(folder).mismatches, *(f"{name} holds NaN or infinity" for name in odd_scales(folder))]
    if wrong:
        raise CheckpointError(
            f"{folder} is not what its config.json says: {_listed(wrong, '; ')}",
            why="the model would compute something else than what was made",
            fix="make or copy the checkpoint again",
        )


def _scales_without_weights(folder: Path) -> list[str]:
    """Weights that are missing beside their scales; transformers dies on these before it reports anything."""
    names = read_headers(folder).keys()
    modules = [name.removesuffix(".weight_scale") for name in names if name.endswith(".weight_scale")]
    return [f"{m}.weight" for m in modules if not {f"{m}.weight", f"{m}.weight_packed"} & names]


def _misshapen(model: Any) -> list[str]:
    """Parameters of another shape than the config asks for; transformers overlooks them in quantized checkpoints."""
    import copy

    import torch
    import transformers

    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):  # shapes without memory
        wanted = dict(transformers.AutoModelForCausalLM.from_config(config).named_parameters())
    return [name for name, p in model.named_parameters() if name in wanted and p.shape != wanted[name].shape]


def _judge(folder: Path, report: dict[str, Any], misshapen: list[str]) -> None:
    """Raises unless the loading report is clean."""
    reported = {key[0] if isinstance(key, tuple) else key for key in report.get("mismatched_keys", ())}
    found = {
        "missing": sorted(report.get("missing_keys", ())),
        "unexpected": sorted(report.get("unexpected_keys", ())),
        "of another shape than config.json says": sorted(reported | set(misshapen)),
    }
    complaints = [f"{what}: {_listed(names)}" for what, names in found.items() if names]
    complaints += [str(message) for message in report.get("error_msgs", [])]
    if complaints:
        raise CheckpointError(
            f"{folder} does not hold the tensors of its architecture; {'; '.join(complaints)}",
            why="transformers would fill what is missing with random numbers and go on",
            fix="make or copy the checkpoint again; if it was edited, restore config.json and the index too",
        )


def _listed(names: list[str], between: str = ", ") -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return between.join(names[:MOST_NAMED]) + more


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
