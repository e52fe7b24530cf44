"""The command line: `labkit run` and the others. Each command imports what it needs when it runs.

Exit codes: 0 if nothing failed, 1 if something did, 2 for wrong use, 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from typer import Argument, Context, Exit, Option, Typer

from labkit.errors import LabError, MissingResult, ProcessFailed, UsageError
from labkit.ops import number, size, table
from labkit.ops.notebooks import LAB_SECONDS, Plan, absolute, find_labs, find_notebooks, parse_value
from labkit.profiles import BASELINE, get_profile
from labkit.store import Workspace, find_workspace
from labkit.transfer import Address, download, parse, plan, upload

if TYPE_CHECKING:
    from labkit.lab import Lab

PLACES = "s3://BUCKET/PREFIX, hub:OWNER/NAME or a folder"
IMAGE = "labkit:latest"
SCHEMES = ("fp8-dynamic", "int8-smoothquant-gptq")
STEP_PARAMETERS = {"data": "", "limit": 0, "model": ""}  # with their defaults

PROFILE = Option("", metavar="NAME", help="tiny or workbench (default: $LABKIT_PROFILE, else tiny)")
WORKSPACE = Option("", metavar="FOLDER", help="folder (default: $LABKIT_WORKSPACE, else workspace/)")
PAIRS = Option([], "-p", metavar="NAME VALUE", help="a parameter: `-p limit 20`, `-p model FOLDER`; may be repeated")
JSON = Option(False, "--json", help="print it as JSON")
CHECKPOINT = Argument(metavar="CHECKPOINT", help="a folder, or a name in WORKSPACE/checkpoints/")
SCHEME = Option([], "--scheme", metavar="NAME", help=f"may be repeated; default: {', '.join(SCHEMES)}")
SUMMARY = Option("", metavar="FILE", help="write the step's figures there, as JSON")

say = partial(print, flush=True)
app = Typer(
    help="Labs on quantizing large language models: run them, show their results, examine this machine.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    words, passed_on = [*(sys.argv[1:] if words is None else words)], list[str]()
    name = words[0] if words else ""
    if name == "serve" and "--" in words:
        words, passed_on = words[: words.index("--")], words[words.index("--") + 1 :]
    try:
        app(_joined(words), prog_name="labkit", obj=passed_on)
    except SystemExit as ended:
        return int(ended.code or 0)
    except UsageError as error:
        print(f"labkit {name}: {error}", file=sys.stderr)
        return 2
    except LabError as error:
        print(f"labkit {name}: {type(error).__name__}: {error}", file=sys.stderr)
    except OSError as error:  # no room, no permission, a file in a folder's place
        print(f"labkit {name}: the system says: {error}", file=sys.stderr)
    return 1


def _joined(words: Sequence[str]) -> list[str]:
    """`-p NAME VALUE` as `-p NAME=VALUE`: typer has no option that is repeated and takes two words."""
    joined, rest = list[str](), list(words)
    while rest:
        count = 3 if rest[0] == "-p" and len(rest) > 2 else 1
        joined += ["-p", "=".join(rest[1:3])] if count == 3 else rest[:1]
        del rest[:count]
    return joined


def _pairs(parameters: Sequence[str]) -> list[tuple[str, str]]:
    for pair in parameters:
        if "=" not in pair:
            raise UsageError(f"-p {pair} has no value", fix="write -p NAME VALUE")
    return [(name, value) for name, _, value in (pair.partition("=") for pair in parameters)]


def _workspace(named: str, start: Path | None = None) -> Workspace:
    return Workspace(find_workspace(named, start or Path.cwd()))


# --- the labs ---------------------------------------------------------------------------------------------------------


@app.command()
def run(
    labs: list[str] = Argument([], metavar="LAB", help="a lab's name or number: 01_fp8_rtn or 1; default: all"),
    profile: str = PROFILE,
    workspace: str = WORKSPACE,
    parameters: list[str] = PAIRS,
    output: str = Option("", metavar="FOLDER", help="folder of the report (default: a new one under WORKSPACE/runs/)"),
    jobs: int = Option(1, metavar="N", min=1, help="labs that run at the same time"),
    only_changed: bool = Option(False, "--only-changed", help="only labs of which something changed since they passed"),
    timeout: float = Option(LAB_SECONDS, metavar="SECONDS", min=1, help="the longest that one lab may take"),
) -> None:
    """Run labs and report."""
    from labkit.ops.report import result_table
    from labkit.ops.run import STOPPING, execute

    asked = Plan(labs, profile, workspace, _pairs(parameters), output, jobs, timeout, only_changed)
    report, folder = execute(asked, say)
    say(f"\n{result_table(report)}\n\n{folder / 'report.html'}")
    codes = {name: 128 + number for number, name in STOPPING.items()}
    raise Exit(codes.get(report.stopped, 0 if report.succeeded else 1))


@app.command()
def results(
    workspace: str = WORKSPACE,
    lines: bool = Option(False, "--lines", help="print every headline figure of the ledger instead"),
    picture: str = Option("", metavar="FILE", help="draw accuracy against size and speed, as PNG"),
    as_json: bool = JSON,
) -> None:
    """Print the scorecard of a workspace: every variant that was made."""
    from labkit import card

    place = _workspace(workspace)
    headlines, rows = place.ledger.headlines(), card.scorecard(place)
    if as_json:
        found = {"variants": [asdict(row) for row in rows], "headlines": [asdict(line) for line in headlines]}
        print(json.dumps(found, indent=2))
    elif headlines and (lines or not rows):
        names = ("model", "variant", "task", "metric", "value", "unit", "n", "lab", "measured")
        more = [{"value": number(m.value, m.stderr), "measured": m.time[:16]} for m in headlines]
        facts = [asdict(m) | shown for m, shown in zip(headlines, more, strict=True)]
        print(table(names, [[str(each[name] or "") for name in names] for each in facts], right=(4, 6)))
    elif rows:
        shown = [row.cells() for row in rows]
        print(table(list(shown[0]), [list(row.values()) for row in shown], right=(2, 3, 4, 5, 6, 8, 9, 10)))
    else:
        print(f"{place.root} holds no results yet; `labkit run` makes them")
    if picture:
        drawn = card.picture(rows)
        if not drawn:
            raise MissingResult("nothing was evaluated in this workspace", fix="labkit run 03, then draw it again")
        drawn.drawing.savefig(picture, format="png", dpi=110)
        print(f"\n{picture}: {drawn.description}")


@app.command()
def doctor(
    profile: str = PROFILE, workspace: str = WORKSPACE, parameters: list[str] = PAIRS, as_json: bool = JSON
) -> None:
    """Say what this machine can do and which labs will run."""
    from labkit.ops.doctor import diagnose, render

    found = diagnose(Plan((), profile, workspace, _pairs(parameters)))
    print(json.dumps(found, indent=2) if as_json else render(found))
    raise Exit(0 if found["all_labs_run"] else 1)


@app.command()
def labs(as_json: bool = JSON) -> None:
    """List the labs."""
    found = find_labs(find_notebooks())
    if as_json:
        keys = ("name", "title", "needs", "makes", "parameters")
        print(json.dumps([{key: getattr(lab, key) for key in keys} for lab in found], indent=2))
    else:
        rows = [[lab.name, ", ".join(lab.needs), ", ".join(lab.makes), lab.title] for lab in found]
        print(table(["lab", "needs", "makes", "title"], rows))


@app.command()
def book(
    workspace: str = WORKSPACE,
    run: str = Option("", metavar="FOLDER", help="a run's folder (default: the workspace's latest)"),
    output: str = Option("book", metavar="FOLDER", help="where the pages go"),
) -> None:
    """Make a static site of the labs that a run executed."""
    from labkit.ops.report import write_book

    notebooks = find_notebooks()
    folder = Path(run).expanduser() if run else (_workspace(workspace, notebooks).runs / "latest").resolve()
    pages = write_book(find_labs(notebooks), folder, Path(output).expanduser())
    print(f"{len(pages)} pages of the run {folder.name}\n{pages[0].absolute()}")


# --- checkpoints ------------------------------------------------------------------------------------------------------


@app.command(epilog="After `--` may stand options of `vllm serve`. The key is $VLLM_API_KEY, or else random.")
def serve(
    context: Context,
    checkpoint: str = CHECKPOINT,
    profile: str = Option("", metavar="NAME", help="whose engine settings count (default: $LABKIT_PROFILE, or tiny)"),
    workspace: str = WORKSPACE,
    port: int = Option(0, metavar="PORT", help="on 127.0.0.1 (default: any free one)", show_default=False),
    eager: bool = Option(False, "--eager", help="start at once, without compiling: slower answers"),
) -> None:
    """Serve a checkpoint on loopback until Ctrl-C."""
    from labkit.ops.serve import serve_until_stopped

    place = _workspace(workspace)
    serve_until_stopped(checkpoint, get_profile(profile), place, port, eager, context.obj, say)


@app.command()
def publish(
    checkpoint: str = CHECKPOINT,
    target: str = Argument(metavar="TARGET", help=f"{PLACES}; what labkit sent there before is replaced"),
    workspace: str = WORKSPACE,
    dry_run: bool = Option(False, "--dry-run", help="say what would be sent, and send nothing"),
    no_card: bool = Option(False, "--no-card", help="send the files as they are, without a model card"),
) -> None:
    """Send a checkpoint with its card to S3, the hub or a folder."""
    from labkit.ops.serve import find_checkpoint
    from labkit.publish import ready

    address, place = parse(target), _workspace(workspace)
    folder = find_checkpoint(checkpoint, place)
    bundle = ready(folder, address, place, card=not no_card)
    if dry_run:
        found = plan(bundle, address)
        files = {"send": found.send, "is there": found.there}
        rows = [[name, size(count) or "0 B", what] for what in files for name, count in files[what].items()]
        rows += [[name, "", "take away: the new manifest does not name it"] for name in found.gone]
        print(table(["file", "size", "what"], rows, right=(1,)))
        print(f"{size(found.size) or '0 B'} would go to {address}, the manifest last. Nothing was sent.")
        return
    with _byte_bar("uploading", bundle.size) as moved:
        done = upload(bundle, address, moved)
    sent = "nothing had to be sent" if done.whole else f"{len(done.send)} files, {size(done.size) or '0 B'} sent"
    print(f"{folder.name} is at {address}: {len(bundle.files)} files and their manifest ({sent})")
    print(f"Back again: labkit fetch {address} FOLDER")


FROM_TO = f"SOURCE FOLDER: from {PLACES}, to a folder; with --profile only where to: FOLDER or s3://BUCKET/PREFIX"


@app.command()
def fetch(
    places: list[str] = Argument(metavar="PLACE", help=FROM_TO),
    profile: str = Option("", metavar="NAME", help="download all that this profile needs where there is no network"),
    workspace: str = WORKSPACE,
) -> None:
    """Download a published model, verified."""
    from labkit.checkpoint import wanted
    from labkit.ops.provision import provision

    if len(places) != (1 if profile else 2):
        form = "labkit fetch --profile NAME FOLDER" if profile else "labkit fetch SOURCE FOLDER"
        raise UsageError(f"{len(places)} places are given, and {1 if profile else 2} wanted", fix=form)
    with _byte_bar("downloading") as moved:
        if profile:
            provision(get_profile(profile), parse(places[0]), _workspace(workspace), print, moved)
            return
        folder = Path(places[1]).expanduser().absolute()
        files = download(parse(places[0]), folder, moved, keep=wanted)
    total = sum(entry.size for entry in files.values())
    print(f"{folder}: {len(files)} files, {size(total)}, each with the contents that {places[0]} names")


@contextmanager
def _byte_bar(what: str, total: int | None = None) -> Iterator[Callable[[int], Any]]:
    """A bar of bytes on a terminal; nothing elsewhere, where a bar is only noise."""
    from tqdm import tqdm

    with tqdm(total=total, desc=what, unit="B", unit_scale=True, disable=None) as bar:
        yield bar.update


# --- one variant at a time, for a shell, a script or a pipeline -------------------------------------------------------


def _opened(name: str, profile: str, workspace: str, parameters: Sequence[str], **more: str) -> Lab:
    """What a step works on, as a notebook opens it; `more` parameters go before those of the command line."""
    from labkit.lab import open_lab

    given = dict[str, Any](STEP_PARAMETERS)
    for key, text in [*_pairs(parameters), *more.items()]:
        if key not in given:
            raise UsageError(f"a step knows no parameter {key}", fix=f"use: {', '.join(given)}")
        given[key] = parse_value(key, text, STEP_PARAMETERS[key])
    given |= {key: absolute(given[key]) for key in ("model", "data")}
    return open_lab(name, profile=profile, workspace=workspace, **given)


def _refuse_namesakes(models: Sequence[str], names: Collection[str]) -> None:
    if len(set(names)) < len(set(models)):
        what, why = f"of {', '.join(models)} two have the same short name", "a store keeps each model under that"
        raise UsageError(what, why, "give them folders of different names, or a store each")


def _store(named: str) -> Address:
    place = parse(named)
    if place.kind == "hub":
        raise UsageError(f"the store is {named}, one repository", fix="use s3://BUCKET/PREFIX or a folder")
    return place


def _summarize(file: str, step: str, models: str, variants: str, figures: Mapping[str, float]) -> None:
    """The step's record: what it was, how long this process has lived, and its figures."""
    import psutil

    if file:
        lived = time.time() - psutil.Process().create_time()
        facts = {"step": step, "model": models, "variant": variants, "seconds": lived, **figures}
        Path(file).write_text(json.dumps(facts), encoding="utf-8")


@app.command("quantize", help="Quantize a model by one of the labs' recipes.")
@app.command("evaluate", help="Score a variant on the profile's tasks.")
def _step(
    context: Context,
    variant: str = Argument(metavar="VARIANT", help="a recipe's name, such as fp8-dynamic; bf16 is the baseline"),
    profile: str = PROFILE,
    workspace: str = WORKSPACE,
    parameters: list[str] = PAIRS,
    store: str = Option("", metavar="PLACE", help="where steps leave what others need: s3://BUCKET/PREFIX or a folder"),
    summary: str = SUMMARY,
) -> None:
    from labkit import pipeline

    step, place = str(context.info_name), _store(store) if store else None
    if step == "quantize" and variant != BASELINE:
        pipeline.recipe_of(variant)  # a name that is none is found before a model is loaded
    lab = _opened(step, profile, workspace, parameters)
    figures = {"quantize": pipeline.quantize, "evaluate": pipeline.evaluate}[step](lab, variant, place)
    _summarize(summary, step, lab.model_name, variant, figures)
    for name, value in figures.items() if step == "evaluate" else ():
        print(f"{name}: {value:.4g}")


@app.command()
def compare(
    variants: list[str] = Argument(metavar="VARIANT", help="what to set against bf16"),
    profile: str = PROFILE,
    workspace: str = WORKSPACE,
    parameters: list[str] = PAIRS,
    models: list[str] = Option([], "--model", metavar="MODEL", help="may be repeated; or -p model MODEL"),
    store: str = Option(metavar="PLACE", help="where the evaluations are: s3://BUCKET/PREFIX or a folder"),
    report: str = Option("", metavar="FILE", help="write it there as Markdown, and as .json"),
    summary: str = SUMMARY,
) -> None:
    """Set variants against their baseline; fails unless all recovered."""
    from labkit import pipeline

    began, place = time.monotonic(), _store(store)
    named = models or [dict(_pairs(parameters)).get("model", "")]
    opened = [_opened("compare", profile, workspace, parameters, model=model) for model in named]
    labs = {lab.model_name: lab for lab in opened}
    _refuse_namesakes(named, labs)
    found = pipeline.compare(labs, variants, place)
    print(pipeline.markdown(found))
    print(f"The comparison is at {pipeline.upload_comparison(found, place)}")
    if report:
        pipeline.write_comparison(found, Path(report))
    _summarize(summary, "compare", ", ".join(labs), ", ".join(variants), {"work_seconds": time.monotonic() - began})
    pipeline.require_recovered(found)


@app.command()
def pipeline(
    what: Literal["compile", "run", "submit"] = Argument(help="write the YAML; run it here; run it there"),
    file: str = Argument("", metavar="FILE", help="of compile: where (default: pipeline.yaml)"),
    local: bool = Option(False, "--local", help="of run: on this machine (a cluster's is `submit`)"),
    endpoint: str = Option("", metavar="URL", help="of submit: the pipeline server"),
    models: list[str] = Option([], "--model", metavar="MODEL", help="may be repeated"),
    schemes: list[str] = SCHEME,
    profile: str = PROFILE,
    data: str = Option("", metavar="PLACE", help="folder or address of the data sets (default: the profile's)"),
    limit: int = Option(0, metavar="ROWS", min=0, help="calibrate on and score fewer rows", show_default=False),
    store: str = Option("", metavar="PLACE", help="what the steps share: s3://BUCKET/PREFIX, or here also a folder"),
    workspace: str = WORKSPACE,
    image: str = Option("", metavar="IMAGE", help=f"what a cluster's steps run in (compile's default: {IMAGE})"),
    gpus: int = Option(1, metavar="N", help="that a step asks the cluster for"),
    memory: str = Option("", metavar="SIZE", help="that a step asks the cluster for, such as 64Gi"),
    secret: str = Option("", metavar="NAME", help="Kubernetes secret with the S3 keys (a workbench's data connection)"),
) -> None:
    """The labs as a Kubeflow pipeline: compile, run here, submit."""
    from labkit.checkpoint import short_name
    from labkit.pipeline import Cluster, compile_to, recipe_of, run_here
    from labkit.pipeline import submit as submit_to

    place, cluster = _workspace(workspace), Cluster(image or IMAGE, gpus, memory, secret)
    logs = place.root / "logs" / "pipeline"
    for scheme in schemes:
        recipe_of(scheme)
    if file and what != "compile":
        raise UsageError(f"{what} reads no file, and {file} is given", fix="leave it out")
    if what == "compile":
        path = Path(file or "pipeline.yaml").absolute()
        nodes = compile_to(path, cluster, logs / "compile.log")
        tasks = [[n.name, ", ".join(n.after), "variant" * (not n.once)] for n in nodes]
        print(f"{table(['task', 'after', 'once for each'], tasks)}\n\n{path}")
        return
    found, data = get_profile(profile), absolute(data or os.environ.get("LABKIT_DATA", ""))
    models = [absolute(model) for model in models or [os.environ.get("LABKIT_MODEL") or found.model]]
    _refuse_namesakes(models, [short_name(model) for model in models])
    asked: dict[str, Any] = {"models": models, "schemes": schemes or list(SCHEMES), "profile": found.name, "data": data}
    asked |= {"limit": limit, "store": store}
    if what == "run" and not local:
        raise UsageError("run without --local", fix="labkit pipeline run --local, or submit --endpoint URL")
    if what == "submit" and not (endpoint and image):
        why = "it compiles the pipeline with the image, memory and secret that are given here"
        fix = "labkit pipeline submit --endpoint https://HOST --image REGISTRY/IMAGE --secret NAME ..."
        raise UsageError("submit without an endpoint or an image", why, fix)
    if what == "submit":
        started = submit_to(endpoint, asked, cluster, logs / "submit.log")
        print(f"Started: {started['name']} ({started['run']})")
        return
    done = run_here(**asked, workspace=place, tell=say)
    rows = []
    for step in done.steps:
        seconds = (step.seconds, step.work_seconds, step.engine_start_seconds, step.other_seconds)
        rows.append([step.step, step.model, step.variant, *(f"{each:.1f}" for each in seconds)])
    print(table(["step", "model", "variant", "seconds", "work", "engine start", "other"], rows, right=(3, 4, 5, 6)))
    for row in done.comparison:
        print(f"{row['variant']} of {row['model']}, {row['task']}: {row['sentence']}")
    print(f"\nStore: {done.store}\nLog: {done.log}")
    if done.failed:
        raise ProcessFailed(f"the pipeline failed in: {', '.join(done.failed)}", done.said, f"look at {done.log}")


if __name__ == "__main__":
    sys.exit(main())
