"""`labkit pipeline`: the labs as a Kubeflow pipeline, compiled, run on this machine, or handed to a cluster."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import ProcessFailed, UsageError
from labkit.ops.commands.command import Command, workspace_option

if TYPE_CHECKING:
    from labkit.pipeline import Cluster
    from labkit.workspace import Workspace

IMAGE = "labkit:latest"
SCHEMES = ("fp8-dynamic", "int8-smoothquant-gptq")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=["compile", "run", "submit"], help="write the YAML; run it here; run it there")
    parser.add_argument(
        "file", nargs="?", default="", metavar="FILE", help="of compile: where (default: pipeline.yaml)"
    )
    parser.add_argument("--local", action="store_true", help="of run: on this machine (a cluster's is `submit`)")
    parser.add_argument("--endpoint", default="", metavar="URL", help="of submit: the pipeline server")
    parser.add_argument("--model", dest="models", action="append", default=[], help="may be repeated")
    parser.add_argument(
        "--scheme", dest="schemes", action="append", default=[], help=f"may be repeated; default: {', '.join(SCHEMES)}"
    )
    parser.add_argument("--profile", default="", help="tiny or workbench (default: $LABKIT_PROFILE, else tiny)")
    parser.add_argument("--data", default="", help="folder or address of the data sets (default: the profile's)")
    parser.add_argument("--limit", type=int, default=0, metavar="ROWS", help="calibrate on and score fewer rows")
    parser.add_argument("--store", default="", help="what the steps share: s3://BUCKET/PREFIX, or here also a folder")
    workspace_option(parser)
    parser.add_argument("--image", default="", help=f"what a cluster's steps run in (compile's default: {IMAGE})")
    parser.add_argument("--gpus", type=int, default=1, help="that a step asks the cluster for (default: 1)")
    parser.add_argument("--memory", default="", help="that a step asks the cluster for, such as 64Gi")
    parser.add_argument(
        "--secret", default="", help="Kubernetes secret with the S3 keys (a workbench's data connection)"
    )


def _pipeline(arguments: argparse.Namespace) -> int:
    from labkit.pipeline import Cluster, recipe_of
    from labkit.workspace import Workspace, find_workspace

    workspace = Workspace(find_workspace(arguments.workspace, Path.cwd()))
    for scheme in arguments.schemes:
        recipe_of(scheme)
    if arguments.file and arguments.what != "compile":
        raise UsageError(f"{arguments.what} reads no file, and {arguments.file} is given", fix="leave it out")
    cluster = Cluster(arguments.image or IMAGE, arguments.gpus, arguments.memory, arguments.secret)
    if arguments.what == "compile":
        return _compile(Path(arguments.file or "pipeline.yaml"), cluster, workspace)
    asked = _asked(arguments)
    return (
        _run(arguments, asked, workspace) if arguments.what == "run" else _submit(arguments, asked, cluster, workspace)
    )


def _asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """The pipeline's own parameters."""
    from labkit.checkpoint import short_name
    from labkit.ops.commands.stepping import refuse_namesakes
    from labkit.ops.prepare import absolute
    from labkit.profiles import get_profile

    if arguments.limit < 0:
        raise UsageError(f"limit is {arguments.limit}", fix="give a number of rows, or 0 for the profile's")
    profile = get_profile(arguments.profile)
    models = [absolute(m) for m in arguments.models or [os.environ.get("LABKIT_MODEL") or profile.model]]
    refuse_namesakes(models, [short_name(model) for model in models])
    return {
        "models": models,
        "schemes": arguments.schemes or list(SCHEMES),
        "profile": profile.name,
        "data": absolute(arguments.data or os.environ.get("LABKIT_DATA", "")),
        "limit": arguments.limit,
        "store": arguments.store,
    }


def _compile(path: Path, cluster: Cluster, workspace: Workspace) -> int:
    from labkit.ops.text import table
    from labkit.pipeline import compile_to

    nodes = compile_to(path.absolute(), cluster, workspace.root / "logs" / "pipeline" / "compile.log")
    print(
        table(
            ["task", "after", "once for each"], [[n.name, ", ".join(n.after), "variant" * bool(n.loop)] for n in nodes]
        )
    )
    print(f"\n{path.absolute()}")
    return 0


def _run(arguments: argparse.Namespace, asked: dict[str, Any], workspace: Workspace) -> int:
    from labkit.ops.text import table
    from labkit.pipeline import run_here

    if not arguments.local:
        raise UsageError(
            "run without --local", fix="labkit pipeline run --local, or labkit pipeline submit --endpoint URL"
        )
    done = run_here(**asked, workspace=workspace, tell=lambda line: print(line, flush=True))
    parts = ("seconds", "work_seconds", "engine_start_seconds", "other_seconds")
    rows = [[s.step, s.model, s.variant, *(f"{getattr(s, part):.1f}" for part in parts)] for s in done.steps]
    print(table(["step", "model", "variant", "seconds", "work", "engine start", "other"], rows, right=(3, 4, 5, 6)))
    for row in done.comparison:
        print(f"{row['variant']} of {row['model']}, {row['task']}: {row['sentence']}")
    print(f"\nStore: {done.store}\nLog: {done.log}")
    if done.failed:
        raise ProcessFailed(f"the pipeline failed in: {', '.join(done.failed)}", done.said, f"look at {done.log}")
    return 0


def _submit(arguments: argparse.Namespace, asked: dict[str, Any], cluster: Cluster, workspace: Workspace) -> int:
    from labkit.pipeline import submit

    if not arguments.endpoint or not arguments.image:
        raise UsageError(
            "submit without an endpoint or an image",
            why="it compiles the pipeline with the image, memory and secret that are given here",
            fix="labkit pipeline submit --endpoint https://HOST --image REGISTRY/IMAGE --secret NAME ...",
        )
    started = submit(arguments.endpoint, asked, cluster, workspace.root / "logs" / "pipeline" / "submit.log")
    print(f"Started: {started['name']} ({started['run']})")
    return 0


PIPELINE = Command("the labs as a Kubeflow pipeline: compile it, run it here, submit it", _options, _pipeline)
