"""`labkit fetch --profile`: everything that a profile needs, in one folder or bucket, for a cluster without a network.

    DESTINATION/
      model/   the profile's model, as the hub has it, verified
      data/    calibration rows, evaluation sets, held-out text, each under the name that `data = FOLDER` looks for;
               nltk/, the sentence splitter that IFEval needs

Then `-p model DESTINATION/model -p data DESTINATION/data` (or LABKIT_MODEL and LABKIT_DATA) need no hub.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit import checkpoint
from labkit.data import ENDINGS, hub_rows, order_of
from labkit.errors import CheckpointError, LabError, UsageError
from labkit.evaluate import hub_source, sentence_splitter
from labkit.files import MANIFEST, publishing, verify_manifest
from labkit.profiles import EMBEDDED, Profile
from labkit.store import Workspace
from labkit.transfer import Address, Progress, bundle, download, is_address, listed, parse, upload

SPARE_ROWS = 64  # beyond twice the calibration rows: for held-out rows, and empty ones


@dataclass(frozen=True)
class Use:
    """One data file. names: what `data` looks for, the preferred first. source: a hub data set, "" if no hub has it.

    most: how many rows are taken, None for all; shuffled: in the order of a run that has a network. needed: whether
    labs fail without the file (of several held-out texts one is enough).
    """

    what: str
    names: tuple[str, ...]
    source: str
    split: str
    config: str = ""
    file: str = ""
    most: int | None = None
    shuffled: bool = False
    needed: bool = True


def uses(profile: Profile) -> list[Use]:
    """Every data file that a profile reads."""
    spec, most = profile.calibration, 2 * profile.calibration.rows + SPARE_ROWS
    found = [Use("calibration rows", spec.data_files, spec.source, spec.split, most=most, shuffled=True)]
    for task in profile.tasks:
        source, config = hub_source(task.name) if task.data_files else ("", "")
        for split, names in task.data_files.items():
            found.append(Use(f"{split} rows of {task.name}", names, source, split, config))
    for text in profile.simulation.texts:
        where = (text.source, text.split, text.config, text.file, text.documents)
        found.append(Use(f"text {text.name}", text.data_files, *where, needed=False))
    return found


def data_lacks(profile: Profile, data: str) -> list[str]:
    """What keeps the labs of a profile from running on a data folder, or on the address of one; a reason a line."""
    try:
        paths = [Path(name) for name in listed(parse(data))] if is_address(data) else Path(data).expanduser().iterdir()
        stems = {path.stem for path in paths if path.suffix in ENDINGS}
    except (LabError, OSError) as error:
        return [f"data {data} can't be read: {' '.join(str(error).split())[:300]}"]
    lost = [use for use in uses(profile) if not stems & set(use.names)]
    found = [f"data {data} lacks the {use.what} ({' or '.join(use.names)})" for use in lost if use.needed]
    texts = [use for use in uses(profile) if not use.needed]
    if texts and all(text in lost for text in texts):
        found.append(f"data {data} lacks one of lab 06's texts ({', '.join(text.names[0] for text in texts)})")
    return found


def provision(
    profile: Profile, destination: Address, workspace: Workspace, say: Callable[[str], None], moved: Progress
) -> None:
    """Downloads all of it to a folder, or by way of the workspace to a bucket. What is there and whole stays as it is.

    Raises UsageError for a profile that needs nothing or a destination that is one repository, TransferError or
    DataError if something can't be had; what has come is kept for the next time.
    """
    if profile.model == EMBEDDED:
        raise UsageError(f"the profile {profile.name} needs no hub", fix="fetch for the profile workbench")
    model, data = destination.below("model"), destination.below("data")  # a repository is refused before anything comes
    in_folder = destination.kind == "folder"
    root = Path(destination.name) if in_folder else workspace.root / "cache" / "provision" / profile.name
    say(f"model: {profile.model}")
    download(parse(f"hub:{profile.model}"), root / "model", moved, keep=checkpoint.wanted)
    checkpoint.refuse_unsafe(root / "model")
    _download_data(profile, root / "data", say)
    for place in (model, data):
        if not in_folder:
            say(f"{place.last}: to {place}")
            upload(bundle(root / place.last), place, moved)
        verify_manifest(root / place.last)
    say(f"Verified. Now: labkit run --profile {profile.name} -p model {model} -p data {data}")


def _download_data(profile: Profile, folder: Path, say: Callable[[str], None]) -> None:
    if (folder / MANIFEST).is_file():
        try:
            verify_manifest(folder)
            say("data: is there, and whole")
            return
        except CheckpointError as error:
            say(f"data: {error.what}; fetching it again")
    with publishing(folder, profile=profile.name, sources={u.what: u.source for u in uses(profile)}) as stage:
        for use in uses(profile):
            path = stage / f"{use.names[0]}.jsonl"
            if not use.source:
                say(f"data: the {use.what} comes from no hub: give it as {use.names[0]}.jsonl or .txt yourself")
            elif not path.exists():  # two uses may be of one file
                rows = hub_rows(use.source, use.split, use.names[0], config=use.config, file=use.file)
                order = order_of(len(rows), profile.seed) if use.shuffled else range(len(rows))
                lines = [_line(dict(rows[index])) for index in order[: use.most]]
                path.write_text("".join(lines), encoding="utf-8")
                say(f"data: {path.name}, {len(lines):,} rows of {use.source}")
        say(f"data: nltk, {sentence_splitter(stage / 'nltk', offline=False)}")


def _line(row: dict[str, Any]) -> str:
    row |= {"text": row["page"]} if "page" in row and "text" not in row else {}  # lab 06 reads `text`
    return json.dumps(row, ensure_ascii=False, default=str) + "\n"
