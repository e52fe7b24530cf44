"""Runs the script of a side, and says what the GPU's allocator saw of it. Arguments: RESULT_FILE SCRIPT ARGUMENT...

RESULT_FILE gets the most bytes that live tensors held, and what they hold once the script is through and its names are
still there. Both are 0 where no GPU was used.
"""

import json
import runpy
import sys
from pathlib import Path

result, script = Path(sys.argv[1]), sys.argv[2]
sys.argv = sys.argv[2:]
names = runpy.run_path(script, run_name="__main__")  # keeps them, as a notebook would

import torch  # noqa: E402  after the script, which has its own order of imports

used = torch.cuda.is_initialized()
result.write_text(json.dumps([torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()] if used else [0, 0]))
