"""Quantize, evaluate and compare without a notebook: step by step at a shell, or all of it as a Kubeflow pipeline.

Read in this order: `recipes` (what is made), `store` (what the steps leave for each other), `steps`, `report`, then
`definition` (the pipeline, in kfp's words) and `tools` (compile, run here, submit).
"""

from labkit.pipeline.compiled import Node, graph, requests
from labkit.pipeline.ranks import with_processes
from labkit.pipeline.recipes import RECIPES, Recipe, recipe_of
from labkit.pipeline.report import markdown, put_comparison
from labkit.pipeline.steps import Compared, compare, evaluate, quantize, require_recovered
from labkit.pipeline.tools import (
    Cluster,
    LocalRun,
    Step,
    compile_to,
    kfp_python,
    run_here,
    submit,
)

__all__ = [
    "RECIPES",
    "Cluster",
    "Compared",
    "LocalRun",
    "Node",
    "Recipe",
    "Step",
    "compare",
    "compile_to",
    "evaluate",
    "graph",
    "kfp_python",
    "markdown",
    "put_comparison",
    "quantize",
    "recipe_of",
    "requests",
    "require_recovered",
    "run_here",
    "submit",
    "with_processes",
]
