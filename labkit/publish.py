"""A checkpoint made ready to go out: examined, and with its model card."""

from __future__ import annotations

from pathlib import Path

from labkit import checkpoint
from labkit.card import CARD, gather, model_card
from labkit.errors import CheckpointError
from labkit.files import MANIFEST, write_atomically
from labkit.store import Workspace
from labkit.transfer import Address, Bundle, bundle


def ready(folder: Path, target: Address, workspace: Workspace, *, card: bool = True) -> Bundle:
    """The files of a checkpoint and, with `card`, the model card that this workspace's measurements give.

    A folder that labkit did not make keeps the card it has. Raises CheckpointError for a folder that holds pickles,
    needs code of its own or is damaged.
    """
    checkpoint.refuse_unsafe(folder)
    if pickles := sorted(path.name for pattern in checkpoint.PICKLES for path in folder.rglob(pattern)):
        why, fix = "a pickle can run any code when it is opened", "send a folder with safetensors only"
        raise CheckpointError(f"{folder} holds {', '.join(pickles)}", why, fix)
    if not card or ((folder / CARD).is_file() and not (folder / MANIFEST).is_file()):
        return bundle(folder)
    path = workspace.root / "cards" / folder.name / CARD
    where = "" if target.kind == "folder" else str(target)  # a path of this machine helps nobody
    write_atomically(path, model_card(gather(folder, workspace), where))
    return bundle(folder, {CARD: path})
