"""The IPython shell that a notebook's cells run in."""

from __future__ import annotations

import sys
from typing import Any


def current_shell() -> Any:
    """The shell of this process; None in a script, where IPython need not even be imported: that takes a while."""
    if "IPython" not in sys.modules:
        return None
    from IPython.core.getipython import get_ipython

    return get_ipython()
