"""Theirs: lm-eval's own command line, as `lm_eval run ...` would be.

The additions are those without which vLLM's CPU build does not start, or an FP8 product takes seconds: child.py makes
them when it is loaded, for labkit's engines too.
"""

import importlib.util
import sys
from pathlib import Path

CHILD = Path(__file__).parents[2] / "labkit" / "engine" / "child.py"
spec = importlib.util.spec_from_file_location("child", CHILD)
assert spec is not None
assert spec.loader is not None
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)  # at import, so that processes which vLLM spawns get it too

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    sys.exit(cli_evaluate())
