"""`labkit fetch --profile`: everything that a profile needs, in one folder or bucket, for a cluster without a network.

    DESTINATION/
      model/   the profile's model, as the hub has it, verified
      data/    calibration rows, evaluation sets, held-out text, each under the name that `data = FOLDER` looks for;
               nltk/, the sentence splitter that IFEval wants

Then `-p model DESTINATION/model -p data DESTINATION/data` (or LABKIT_MODEL and LABKIT_DATA) need no hub.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit import calibration, checkpoint
from labkit.errors import CheckpointError, LabError, UsageError
from labkit.evaluation import hub_source, sentence_splitter
from labkit.hubdata import hub_rows
from labkit.localdata import ENDINGS
from labkit.manifest import MANIFEST, verify_manifest
from labkit.profiles import EMBEDDED, Profile
from labkit.transfer import Address, bring, bundle, is_address, listed, parse, send
from labkit.transfer.store import Progress
from labkit.workspace import Workspace, publishing

MODEL, DATA, NLTK = "model", "data", "nltk"
SPARE_ROWS = 64  # beyond twice the calibration rows: for held-out rows, and empty ones


@dataclass(frozen=True)
class Use:
    """One data file. names: what `data` looks for, the preferred first; rows: gets them from the hub.

    needed: whether labs fail without it (of several held-out texts one is enough). source: where the rows come from,
    "" if no hub has them.
    """

    what: str
    names: tuple[str, ...]
    source: str
    rows: Callable[[], Iterable[dict[str, Any]]]
    needed: bool = True


def uses(profile: Profile) -> list[Use]:
    """Every data file that a profile reads."""
    spec = profile.calibration
    found = [Use("calibration rows", spec.data_files, spec.source, lambda: _calibration_rows(profile))]
    for task in profile.tasks:
        source, config = hub_source(task.name) if task.data_files else ("", "")
        for split, names in task.data_files.items():
            found.append(Use(f"{split} rows of {task.name}", names, source, _split(source, config, split, names[0])))
    for text in profile.simulation.texts:
        rows = _split(text.source, text.config, text.split, text.data_files[0], text.file, text.documents)
        found.append(Use(f"text {text.name}", text.data_files, text.source, rows, needed=False))
    return found


def lacking(profile: Profile, names: Iterable[str]) -> list[str]:
    """What labs of a profile would miss in a data folder that holds these files, in words."""
    stems = {Path(name).stem for name in names if Path(name).suffix in ENDINGS}
    wanted = uses(profile)
    texts = [use for use in wanted if not use.needed]
    lost = [use for use in wanted if use.needed and not stems & set(use.names)]
    found = [f"the {use.what} ({' or '.join(use.names)})" for use in lost]
    if texts and not any(stems & set(use.names) for use in texts):
        found.append(f"one of lab 06's texts ({', '.join(use.names[0] for use in texts)})")
    return found


def data_lacks(profile: Profile, data: str) -> list[str]:
    """What keeps the labs of a profile from running on a data folder, or on the address of one; a reason a line."""
    try:
        if is_address(data):
            names = list(listed(parse(data)))
        else:
            names = [path.name for path in Path(data).expanduser().iterdir()]
    except (LabError, OSError) as error:
        return [f"data {data} can't be read: {' '.join(str(error).split())[:300]}"]
    return [f"data {data} lacks {what}" for what in lacking(profile, names)]


def provision(
    profile: Profile, destination: Address, workspace: Workspace, tell: Callable[[str], None], moved: Progress
) -> None:
    """Brings all of it to a folder, or by way of the workspace to a bucket. What is there and whole stays as it is.

    Raises UsageError for a profile that needs nothing or a destination that is one repository, TransferError or
    DataError if something can't be had; what has come is kept for the next time.
    """
    if profile.model == EMBEDDED:
        raise UsageError(f"the profile {profile.name} needs no hub", fix="fetch for the profile workbench")
    places = {part: destination.below(part) for part in (MODEL, DATA)}  # a repository is refused before anything comes
    staged = destination.kind != "folder"
    root = workspace.root / "cache" / "provision" / profile.name if staged else Path(destination.name)
    tell(f"model: {profile.model}")
    bring(parse(f"hub:{profile.model}"), root / MODEL, moved, keep=checkpoint.wanted)
    checkpoint.refuse_unsafe(root / MODEL)
    _bring_data(profile, root / DATA, tell)
    if staged:
        for part, place in places.items():
            tell(f"{part}: to {place}")
            send(bundle(root / part), place, moved)
    for part in places:
        verify_manifest(root / part)
    tell(f"Verified. Now: labkit run --profile {profile.name} -p model {places[MODEL]} -p data {places[DATA]}")


def _bring_data(profile: Profile, folder: Path, tell: Callable[[str], None]) -> None:
    if (folder / MANIFEST).is_file():
        try:
            verify_manifest(folder)
            tell("data: is there, and whole")
            return
        except CheckpointError as error:
            tell(f"data: {error.what}; bringing it again")
    with publishing(folder, profile=profile.name, sources={use.what: use.source for use in uses(profile)}) as stage:
        for use in uses(profile):
            path = stage / f"{use.names[0]}.jsonl"
            if path.exists():  # two uses of one file
                continue
            if not use.source:
                tell(f"data: the {use.what} comes from no hub: give it as {use.names[0]}.jsonl or .txt yourself")
                continue
            count = _write(path, use.rows())
            tell(f"data: {path.name}, {count:,} rows of {use.source}")
        tell(f"data: {NLTK}, {sentence_splitter(stage / NLTK, offline=False)}")


def _calibration_rows(profile: Profile) -> Iterator[dict[str, Any]]:
    """The rows that a run with a network would begin with, in its order, and some to spare."""
    spec = profile.calibration
    rows = hub_rows(spec.source, spec.split, spec.data_files[0])
    order = calibration.order_of(len(rows), profile.seed)
    return (rows[index] for index in order[: 2 * spec.rows + SPARE_ROWS])


def _split(
    source: str, config: str, split: str, local_name: str, file: str = "", most: int | None = None
) -> Callable[[], Iterator[dict[str, Any]]]:
    def rows() -> Iterator[dict[str, Any]]:
        found = hub_rows(source, split, local_name, config=config, file=file)
        for index in range(min(len(found), most or len(found))):
            row = dict(found[index])
            yield row | ({"text": row["page"]} if "page" in row and "text" not in row else {})  # lab 06 reads `text`

    return rows


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            count += 1
    return count
