"""What a lab can be told."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from labkit.errors import UsageError


@dataclass(frozen=True)
class Parameters:
    """What a lab can be told; empty means the environment variable, else the default."""

    profile: str = ""
    workspace: str = ""
    model: str = ""
    data: str = ""
    limit: int = 0
    target: str = ""
    dtype: str = ""

    def resolved(self) -> Parameters:
        """The same with the environment filled in (`workspace` and `profile` are resolved by their own modules)."""
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 0:
            raise UsageError(f"limit is {self.limit!r}", fix="give a whole number of rows, or 0 for the profile's")
        named: dict[str, Any] = {}
        for name in ("profile", "workspace", "model", "data", "target", "dtype"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise UsageError(
                    f"{name} is {value!r}", why="it must be text", fix=f'write {name} = "..." or leave it empty'
                )
            named[name] = value or os.environ.get(f"LABKIT_{name.upper()}", "")
        return replace(self, **named)
