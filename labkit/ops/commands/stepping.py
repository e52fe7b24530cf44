"""`labkit quantize`, `evaluate` and `compare`: one variant at a time, for a shell, a script or a pipeline."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from labkit.errors import UsageError
from labkit.ops.commands.command import Command, common_options

if TYPE_CHECKING:
    from labkit.lab import Lab
    from labkit.transfer import Address

KNOWN = ("model", "data", "limit")


def opened(name: str, arguments: argparse.Namespace, **more: str) -> Lab:
    """What a step works on, as a notebook opens it; `more` parameters go before those of the command line."""
    from labkit.lab import open_lab
    from labkit.ops.prepare import absolute

    given: dict[str, str | int] = dict(arguments.parameters) | more
    if unknown := given.keys() - set(KNOWN):
        raise UsageError(f"a step knows no parameter {', '.join(sorted(unknown))}", fix=f"use: {', '.join(KNOWN)}")
    for key in ("model", "data"):
        given[key] = absolute(str(given.get(key, "")))
    try:
        given["limit"] = int(given.get("limit", 0))
    except ValueError as error:
        raise UsageError(f"limit is {given['limit']!r}", fix="give a whole number of rows") from error
    return open_lab(name, profile=arguments.profile, workspace=arguments.workspace, **given)


def refuse_namesakes(models: Sequence[str], names: Collection[str]) -> None:
    """Raises UsageError if two models have one name: in a store they would take each other's place."""
    if len(set(names)) < len(set(models)):
        raise UsageError(
            f"of {', '.join(models)} two have the same short name ({', '.join(sorted(set(names)))})",
            why="a store keeps each model under its short name",
            fix="give them folders of different names, or a store each",
        )


def store_of(named: str) -> Address | None:
    """The store that `--store` names; None for none."""
    from labkit.transfer import parse

    place = parse(named) if named else None
    if place and place.kind == "hub":
        raise UsageError(f"the store is {named}, one repository", fix="use s3://BUCKET/PREFIX or a folder")
    return place


def _step_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("variant", metavar="VARIANT", help="a recipe's name, such as fp8-dynamic; bf16 is the baseline")
    common_options(parser)
    parser.add_argument(
        "--store", default="", help="where steps leave what others need: s3://BUCKET/PREFIX or a folder"
    )
    _summary_option(parser)


def _summary_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--summary", default="", metavar="FILE", help="write the step's figures there, as JSON")


def _quantize(arguments: argparse.Namespace) -> int:
    from labkit.pipeline import quantize, recipe_of
    from labkit.profiles import BASELINE

    store = store_of(arguments.store)
    if arguments.variant != BASELINE:
        recipe_of(arguments.variant)  # a name that is none is found before a model is loaded
    lab = opened("quantize", arguments)
    _summarize(arguments, "quantize", lab.model_name, arguments.variant, quantize(lab, arguments.variant, store))
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from labkit.pipeline import evaluate

    store = store_of(arguments.store)
    lab = opened("evaluate", arguments)
    figures = evaluate(lab, arguments.variant, store)
    _summarize(arguments, "evaluate", lab.model_name, arguments.variant, figures)
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    return 0


def _summarize(
    arguments: argparse.Namespace, step: str, models: str, variants: str, figures: Mapping[str, float]
) -> None:
    """The step's record: what it was, how long this process has lived, and its figures."""
    from pathlib import Path

    import psutil

    if arguments.summary:
        facts = {"step": step, "model": models, "variant": variants}
        lived = time.time() - psutil.Process().create_time()
        Path(arguments.summary).write_text(json.dumps({**facts, "seconds": lived, **figures}), encoding="utf-8")


def _compare_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("variants", nargs="+", metavar="VARIANT", help="what to set against bf16")
    common_options(parser)
    parser.add_argument(
        "--model", dest="models", action="append", default=[], help="may be repeated; or -p model MODEL"
    )
    parser.add_argument("--store", required=True, help="where the evaluations are: s3://BUCKET/PREFIX or a folder")
    parser.add_argument("--report", default="", metavar="FILE", help="write it there as Markdown, and as .json")
    _summary_option(parser)


def _compare(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from labkit.pipeline import compare, markdown, put_comparison, require_recovered

    began, store = time.monotonic(), store_of(arguments.store)
    assert store is not None, "the option is required"
    models = arguments.models or [dict(arguments.parameters).get("model", "")]
    labs = {lab.model_name: lab for lab in (opened("compare", arguments, model=model) for model in models)}
    refuse_namesakes(models, list(labs))
    found = compare(labs, arguments.variants, store)
    print(markdown(found))
    print(f"The comparison is at {put_comparison(found, store)}")
    if arguments.report:
        rows = json.dumps([row.facts() for row in found])
        Path(arguments.report).with_suffix(".json").write_text(rows, encoding="utf-8")
        Path(arguments.report).write_text(markdown(found), encoding="utf-8")
    _summarize(
        arguments, "compare", ", ".join(labs), ", ".join(arguments.variants), {"work_seconds": time.monotonic() - began}
    )
    require_recovered(found)
    return 0


QUANTIZE = Command("quantize a model by one of the labs' recipes", _step_options, _quantize)
EVALUATE = Command("score a variant on the profile's tasks", _step_options, _evaluate)
COMPARE = Command("set variants against their baseline; fails unless all recovered", _compare_options, _compare)
