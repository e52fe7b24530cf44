"""Of model cards, and of checkpoints that were sent and brought back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from labkit.checks.judging import Check, invariant
from labkit.errors import CheckpointError
from labkit.manifest import verify_manifest

if TYPE_CHECKING:
    from labkit.card import Evidence
    from labkit.errors import LabError
    from labkit.transfer import Bundle, Plan


def card_is_backed(card: str, evidence: Evidence) -> Check:
    """Each score, the bytes and the calibration's fingerprint of the evidence stand in the card."""
    calibration = evidence.manifest.get("calibration") or {}
    wanted = {f"the score on {s.measured.task}": f"{s.measured.value:.3f}" for s in evidence.scores}
    wanted["the size"] = f"{evidence.inspection.total_bytes:,} bytes"
    wanted |= {"the calibration set": calibration["fingerprint"]} if calibration else {}
    missing = [what for what, text in wanted.items() if text not in card]
    return invariant(
        not missing,
        f"the card of {evidence.model} {evidence.variant}",
        f"it lacks {', '.join(missing)}" if missing else f"{len(wanted)} measured figures stand in it as measured",
        "write the card again: card.model_card(card.gather(...))",
    )


def is_whole_there(plan: Plan) -> Check:
    """A place has every file of a bundle, with these very bytes, and the manifest."""
    return invariant(
        plan.whole,
        str(plan.target),
        f"{len(plan.there)} files with the right contents, and their manifest"
        if plan.whole
        else f"{len(plan.send)} files are not there yet, or differ",
        "send it again: it goes on where it was",
    )


def same_contents(bundle: Bundle, folder: Path) -> Check:
    """A folder holds the files of a bundle, each read again and equal by its SHA-256."""
    try:
        found = {name: facts["sha256"] for name, facts in verify_manifest(folder)["files"].items()}
        different = sorted(
            name
            for name in bundle.files.keys() | found.keys()
            if name not in bundle.files or found.get(name) != bundle.files[name].sha256
        )
        problem = f"{', '.join(different)} differ" if different else ""
    except CheckpointError as error:
        problem = error.what
    return invariant(
        not problem,
        str(folder.name),
        problem or f"all {len(bundle.files)} files are equal by SHA-256",
        "bring it again",
    )


def is_refused(error: LabError | None, name: str) -> Check:
    """Something that must be refused was refused, with an error that names it."""
    named = error is not None and name in str(error)
    found = "nothing objected" if error is None else f"refused: {error.what}"
    return invariant(named, f"what happened to {name}", found, "look at the cell before: was the damage really done?")
