"""The labs as a Kubeflow pipeline: quantize and evaluate each variant of each model, then one comparison of all.

Run by the interpreter of `.venv-kfp` (kubeflow.py does that), which has kfp and no labkit; so nothing of labkit is
imported here, and each component calls labkit's command line with the interpreter `LABKIT_PYTHON`. A component goes to
the cluster as the text of its function, together with that of `labkit` below. (kfp reads the functions' annotations, so
they are not postponed by a `__future__` import here.)

    python definition.py compile FILE SETTINGS             SETTINGS, ARGUMENTS: JSON
    python definition.py run FOLDER ARGUMENTS SETTINGS     here, with kfp's subprocess runner; its records go to FOLDER
    python definition.py submit ENDPOINT ARGUMENTS SETTINGS ANSWER      ANSWER: the file for the run's id and name
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from kfp import Client, compiler, dsl, kubernetes, local
from kfp.dsl import Markdown, Metrics, Output

NAME = "quantize-evaluate-compare"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
# for a store that is not Amazon's, keys that expire, and gated models of the hub
OPTIONAL_KEYS = ("AWS_S3_ENDPOINT", "AWS_S3_BUCKET", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN", "HF_TOKEN")


def labkit(*words: str) -> dict[str, Any]:
    """Runs a command of labkit, which fails with its error; returns the figures of the step."""
    import json
    import os
    import subprocess
    import tempfile

    with tempfile.NamedTemporaryFile() as summary:
        command = [os.environ.get("LABKIT_PYTHON", "python3"), "-m", "labkit.cli", *words, "--summary", summary.name]
        subprocess.run(command, check=True)
        return json.load(summary)


def plan(models: list[str], schemes: list[str]) -> list[dict[str, str]]:
    """Every variant of every model, the baseline first: what the fan-out runs over."""
    return [{"model": model, "variant": variant} for model in models for variant in ["bf16", *schemes]]


def quantize(
    model: str, variant: str, profile: str, data: str, limit: int, store: str, metrics: Output[Metrics]
) -> str:
    """Quantizes one variant, and uploads the checkpoint to the store."""
    asked = ["--profile", profile, "-p", "model", model, "-p", "data", data, "-p", "limit", str(limit)]
    metrics.metadata.update(labkit("quantize", variant, *asked, "--store", store))
    return variant


def evaluate(
    model: str, variant: str, profile: str, data: str, limit: int, store: str, metrics: Output[Metrics]
) -> str:
    """Scores one variant as it lies in the store, and uploads the samples to it."""
    asked = ["--profile", profile, "-p", "model", model, "-p", "data", data, "-p", "limit", str(limit)]
    metrics.metadata.update(labkit("evaluate", variant, *asked, "--store", store))
    return variant


def compare(
    models: list[str], schemes: list[str], profile: str, store: str, evaluated: list[str], report: Output[Markdown]
) -> None:
    """Sets every variant against its baseline; fails unless all of them recovered. `evaluated`: what to wait for."""
    asked = [word for model in models for word in ("--model", model)]
    asked += ["--profile", profile, "--store", store, "--report", report.path]
    report.metadata.update(labkit("compare", *schemes, *asked))


def pipeline(
    image: str, gpus: int = 1, memory: str = "", secret: str = "", parallel: int | None = None
) -> Callable[..., Any]:
    """The pipeline for a cluster's settings, which `labkit.pipeline.Cluster` describes.

    An evaluation splits its model over the GPUs; quantizing takes one, because it goes through a model block by block.
    parallel: how many variants at once, None for as many as the cluster has room for.
    """
    # kfp is in the image's own interpreter already, and a step installs nothing while it runs
    options = {"install_kfp_package": False, "packages_to_install": [], "additional_funcs": [labkit]}
    stages = {f.__name__: dsl.component(f, base_image=image, **options) for f in (plan, quantize, evaluate, compare)}

    def fitted(task: dsl.PipelineTask, heavy: bool = True, split: int = 1) -> dsl.PipelineTask:
        task.set_caching_options(False)  # a step's result lies in the store, where kfp can't see whether it still does
        if heavy and gpus:
            task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(split)
        if split > 1:
            task.set_env_variable("LABKIT_TENSOR_PARALLEL", str(split))
            # the engine's processes talk through shared memory, of which a container has 64 MB by itself
            kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory")
        if heavy and memory:
            task.set_memory_request(memory).set_memory_limit(memory)
        if secret and task.name != "plan":
            for keys, optional in ((KEYS, False), (OPTIONAL_KEYS, True)):
                kubernetes.use_secret_as_env(task, secret, {key: key for key in keys}, optional=optional)
        return task

    @dsl.pipeline(  # type: ignore[untyped-decorator]
        name=NAME, description="Quantize models by several schemes, evaluate each, compare with the baseline"
    )
    def labs(
        store: str, models: list[str], schemes: list[str], profile: str = "workbench", data: str = "", limit: int = 0
    ) -> None:
        planned = fitted(stages["plan"](models=models, schemes=schemes), heavy=False)
        with dsl.ParallelFor(planned.output, parallelism=parallel) as item:
            same = {"model": item.model, "profile": profile, "data": data, "limit": limit, "store": store}
            made = fitted(stages["quantize"](variant=item.variant, **same))
            scored = fitted(stages["evaluate"](variant=made.outputs["Output"], **same), split=gpus)
        every = dsl.Collected(scored.outputs["Output"])
        asked = {"models": models, "schemes": schemes, "profile": profile, "store": store, "evaluated": every}
        fitted(stages["compare"](**asked), heavy=False)

    return labs


def main(what: str, where: str, *texts: str) -> None:
    """One of the three commands; see above."""
    settings = json.loads(texts[0] if what == "compile" else texts[1])
    labs = pipeline(**settings)
    if what == "compile":
        compiler.Compiler().compile(labs, where)
    elif what == "run":
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=where, raise_on_error=True)
        labs(**json.loads(texts[0]))
    else:
        token, certificate = os.environ.get("KFP_TOKEN"), os.environ.get("KFP_CA_BUNDLE")
        client = Client(host=where, existing_token=token, ssl_ca_cert=certificate)
        started = client.create_run_from_pipeline_func(labs, arguments=json.loads(texts[0]), enable_caching=False)
        with open(texts[2], "w") as file:
            json.dump({"run": started.run_id, "name": started.run_info.display_name}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
