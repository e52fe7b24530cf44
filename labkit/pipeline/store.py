"""What the steps of a pipeline leave for each other, in a bucket or a folder; each with a manifest, whole or not there.

STORE/checkpoints/<model>--<variant>/    quantized models
STORE/evaluations/<model>--<variant>/    scores with their samples, and of which checkpoint they are
STORE/comparison/                        every variant against its baseline
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from labkit import checkpoint
from labkit.errors import CheckpointError, MissingResult
from labkit.evaluation import Evaluation, load_evaluation, load_samples, save_evaluation
from labkit.lab import Lab
from labkit.manifest import read_manifest, verify_manifest
from labkit.profiles import BASELINE
from labkit.transfer import Address, bring_to_cache, bundle, listed, send
from labkit.workspace import publishing


def place_of(store: Address, kind: str, lab: Lab, variant: str) -> Address:
    """Where in a store the checkpoint or evaluation of a variant of a lab's model lies."""
    return store.below(kind).below(f"{lab.model_name}--{variant}")


def put_checkpoint(lab: Lab, variant: str, store: Address) -> Address:
    """Sends a variant's checkpoint from the workspace; returns where it is now."""
    place = place_of(store, "checkpoints", lab, variant)
    send(bundle(lab.checkpoint(variant)), place)
    return place


def get_checkpoint(lab: Lab, variant: str, store: Address) -> tuple[Path, str]:
    """The folder of a variant's checkpoint, verified, and its `identity`.

    It is brought here, or where it is if the store is a folder.
    """
    place = place_of(store, "checkpoints", lab, variant)
    _require(place, lab, f"labkit quantize {variant}", store)
    found = identity(lab, variant, store)
    if place.kind != "folder":
        return checkpoint.resolve_model(str(place), offline=False, cache=lab.workspace.models), found
    verify_manifest(Path(place.name))
    return Path(place.name), found


def put_evaluations(lab: Lab, variant: str, done: Sequence[Evaluation], store: Address, scored: str) -> Address:
    """Sends scores with their samples. scored: the `identity` of the checkpoint, taken before it was evaluated.

    Raises CheckpointError if another one lies in the store by now.
    """
    place = place_of(store, "evaluations", lab, variant)
    if identity(lab, variant, store) != scored:
        raise CheckpointError(
            f"{place_of(store, 'checkpoints', lab, variant)} was made again while it was evaluated",
            why="these scores are of the one before",
            fix="evaluate it again, and give each run a store of its own",
        )
    facts = {"model": lab.model_source, "variant": variant, "checkpoint": scored}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "evaluation"
        with publishing(folder, **facts) as stage:
            for e in done:
                save_evaluation(replace(e, samples=stage / f"{e.request.task.name}.jsonl"), load_samples(e.samples))
        send(bundle(folder), place)
    return place


def get_evaluations(lab: Lab, variant: str, store: Address) -> dict[str, Evaluation]:
    """The scores of a variant by task.

    Raises MissingResult if there are none, CheckpointError if the checkpoint has been made again since.
    """
    place = place_of(store, "evaluations", lab, variant)
    again = f"labkit evaluate {variant}"
    _require(place, lab, again, store)
    folder = bring_to_cache(place, lab.workspace.root / "cache" / "evaluations")
    facts = read_manifest(folder)
    if facts["model"] != lab.model_source or facts["checkpoint"] != identity(lab, variant, store):
        raise CheckpointError(
            f"{place} is of another checkpoint than lies in {place_of(store, 'checkpoints', lab, variant)}",
            why="the checkpoint was made again since it was evaluated, or from another model of the same name",
            fix=f"evaluate it again: {_command(lab, again, store)}",
        )
    found = [load_evaluation(path) for path in sorted(folder.glob("*.jsonl"))]
    return {e.request.task.name: e for e in found}


def identity(lab: Lab, variant: str, store: Address) -> str:
    """A digest of a checkpoint's files as the store has them; "" for the baseline, which is not in it."""
    if variant == BASELINE:
        return ""
    files = listed(place_of(store, "checkpoints", lab, variant))
    contents = json.dumps({name: entry.sha256 for name, entry in sorted(files.items())})
    return hashlib.sha256(contents.encode()).hexdigest()


def _command(lab: Lab, command: str, store: Address) -> str:
    return f"{command} -p model {lab.model_source} --store {store}"


def _require(place: Address, lab: Lab, command: str, store: Address) -> None:
    try:
        there = place.kind != "folder" or Path(place.name).is_dir()
        if there:
            listed(place)
        lacks = "" if there else "no folder"
    except CheckpointError as error:
        lacks = error.what
    if lacks:
        raise MissingResult(
            f"{place} is not there, or not whole: {lacks}", fix=f"run this first: {_command(lab, command, store)}"
        )
