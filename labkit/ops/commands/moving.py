"""`labkit publish` and `labkit fetch`: checkpoints out to a bucket, the hub or a folder, and back again."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from labkit.ops.commands.command import Command, workspace_option

if TYPE_CHECKING:
    from labkit.transfer import Plan
    from labkit.transfer.store import Progress

PLACES = "s3://BUCKET/PREFIX, hub:OWNER/NAME or a folder"


def _publish_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or a name in WORKSPACE/checkpoints/")
    parser.add_argument("target", metavar="TARGET", help=f"{PLACES}; what labkit sent there before is replaced")
    workspace_option(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent, and send nothing")
    parser.add_argument("--no-card", action="store_true", help="send the files as they are, without a model card")


def _publish(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from labkit.ops.serve import find_checkpoint
    from labkit.ops.text import size
    from labkit.publish import ready
    from labkit.transfer import parse, plan, send
    from labkit.workspace import Workspace, find_workspace

    target = parse(arguments.target)
    workspace = Workspace(find_workspace(arguments.workspace, Path.cwd()))
    folder = find_checkpoint(arguments.checkpoint, workspace)
    bundle = ready(folder, target, workspace, card=not arguments.no_card)
    if arguments.dry_run:
        print(_planned(plan(bundle, target)))
        return 0
    with _bar(bundle.size, "sending") as moved:
        done = send(bundle, target, moved)
    sent = "nothing had to be sent" if done.whole else f"{len(done.send)} files, {size(done.size) or '0 B'} sent"
    print(f"{folder.name} is at {target}: {len(bundle.files)} files and their manifest ({sent})")
    print(f"Back again: labkit fetch {target} FOLDER")
    return 0


def _planned(plan: Plan) -> str:
    from labkit.ops.text import size, table

    rows = [[name, size(count) or "0 B", "send"] for name, count in plan.send.items()]
    rows += [[name, size(count) or "0 B", "is there"] for name, count in plan.there.items()]
    rows += [[name, "", "take away: the new manifest does not name it"] for name in plan.gone]
    end = f"{size(plan.size) or '0 B'} would go to {plan.target}, the manifest last. Nothing was sent."
    return f"{table(['file', 'size', 'what'], rows, right=(1,))}\n{end}"


def _fetch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "places",
        nargs="+",
        metavar="PLACE",
        help=f"SOURCE FOLDER: from {PLACES}, to a folder; with --profile only where to: FOLDER or s3://BUCKET/PREFIX",
    )
    parser.add_argument("--profile", default="", help="bring all that this profile needs where there is no network")
    workspace_option(parser)


def _fetch(arguments: argparse.Namespace) -> int:
    from labkit.errors import UsageError

    wanted = 1 if arguments.profile else 2
    if len(arguments.places) != wanted:
        form = "labkit fetch --profile NAME FOLDER" if arguments.profile else "labkit fetch SOURCE FOLDER"
        raise UsageError(f"{len(arguments.places)} places are given, and {wanted} wanted", fix=form)
    return _provide(arguments) if arguments.profile else _bring(*arguments.places)


def _provide(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from labkit.ops.provision import provision
    from labkit.profiles import get_profile
    from labkit.transfer import parse
    from labkit.workspace import Workspace, find_workspace

    workspace = Workspace(find_workspace(arguments.workspace, Path.cwd()))
    with _bar(None, "moving") as moved:
        provision(get_profile(arguments.profile), parse(arguments.places[0]), workspace, print, moved)
    return 0


def _bring(named: str, to: str) -> int:
    from pathlib import Path

    from labkit.checkpoint import wanted
    from labkit.ops.text import size
    from labkit.transfer import bring, parse

    folder = Path(to).expanduser().absolute()
    with _bar(None, "bringing") as moved:
        files = bring(parse(named), folder, moved, keep=wanted)
    total = sum(entry.size for entry in files.values())
    print(f"{folder}: {len(files)} files, {size(total)}, each with the contents that {named} names")
    return 0


@contextmanager
def _bar(total: int | None, what: str) -> Iterator[Progress]:
    """A bar of bytes on a terminal; nothing elsewhere, where a bar is only noise."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None) as bar:

        def moved(count: int) -> None:
            bar.update(count)

        yield moved


PUBLISH = Command("send a checkpoint with its model card to S3, the hub or a folder", _publish_options, _publish)
FETCH = Command("bring a published model here, verified", _fetch_options, _fetch)
