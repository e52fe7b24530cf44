"""Quantize, evaluate and compare without a notebook: step by step at a shell, or all of it as a Kubeflow pipeline.

Read in this order: `steps` (recipes, the three steps, and the store that they share), `definition` (the pipeline, in
kfp's words), `kubeflow` (compile it, run it here, submit it).
"""

from labkit.pipeline.kubeflow import Cluster, compile_to, kfp_python, run_here, submit
from labkit.pipeline.steps import (
    RECIPES,
    compare,
    evaluate,
    markdown,
    quantize,
    recipe_of,
    require_recovered,
    upload_comparison,
    write_comparison,
)
