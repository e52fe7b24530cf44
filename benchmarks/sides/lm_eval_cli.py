"""Theirs: lm-eval's own command line, as `lm_eval run ...` would be.

The one addition is what vLLM's CPU build does not start without, or takes seconds for an FP8 product; labkit's engines
have it too. It stands at the top, so that processes which vLLM spawns get it as well.
"""

import sys

import labkit.mends  # noqa: F401

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    sys.exit(cli_evaluate())
