"""Recipes for the command line are those of the notebooks."""

from __future__ import annotations

import pytest
import yaml

from labkit.errors import UsageError
from labkit.manifest import read_manifest
from labkit.pipeline import RECIPES, recipe_of
from labkit.profiles import TINY
from tests.conftest import LabsRun

IN_NOTEBOOKS = sorted(RECIPES.keys() - {"w4a16-gptq"})


class WithTuples(yaml.SafeLoader):
    """Recipes are written with Python's tuples in them."""


WithTuples.add_constructor("tag:yaml.org,2002:python/tuple", lambda loader, node: loader.construct_sequence(node))


@pytest.mark.labs
@pytest.mark.parametrize("variant", IN_NOTEBOOKS)
def test_a_recipe_is_the_one_that_the_lab_shows(variant: str, labs_run: LabsRun) -> None:
    from llmcompressor.recipe import Recipe

    recipe = recipe_of(variant)
    made = read_manifest(labs_run.workspace.checkpoint(variant))
    ours, theirs = (
        yaml.load(text, WithTuples)["default_stage"]["default_modifiers"]  # noqa: S506
        for text in (Recipe.from_modifiers(recipe.modifiers(TINY)).yaml(), made["recipe"])
    )
    if "SmoothQuantModifier" in theirs:  # it notes what it found in the model
        theirs["SmoothQuantModifier"] = {
            key: value for key, value in theirs["SmoothQuantModifier"].items() if key not in ("mappings", "ignore")
        }
    assert ours == theirs
    calibration = made["calibration"]
    assert bool(calibration) == bool(recipe.rows_of(TINY))
    if calibration and variant != "int8-gptq":  # lab 02 makes it from a few rows only
        assert calibration["rows"] == recipe.rows_of(TINY)


def test_a_recipe_that_is_none_is_refused_with_the_names_of_those_that_are() -> None:
    with pytest.raises(UsageError, match="int8-smoothquant-gptq"):
        recipe_of("int9")
