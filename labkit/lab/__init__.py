"""`open_lab()`: binds a profile, a workspace and the rest of labkit for one notebook."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from labkit import hardware
from labkit.lab import notebook, pacing
from labkit.lab.work import Lab
from labkit.profiles import get_profile
from labkit.transfer import bring_to_cache, is_address, parse
from labkit.workspace import Workspace, find_workspace

__all__ = ["Lab", "open_lab"]


def open_lab(name: str, **parameters: Any) -> Lab:
    """Opens a lab: `name` is the notebook's stem, `parameters` are those of its parameters cell.

    Raises UsageError for an unknown or mistyped parameter, also one that papermill injected, before anything runs.
    """
    notebook.refuse_unknown_parameters(parameters)
    notebook.quiet_libraries()
    asked = notebook.parameters_from(parameters).resolved()
    workspace = Workspace(find_workspace(asked.workspace))
    workspace.require_writable()
    profile = get_profile(asked.profile, asked.dtype)
    if asked.limit:
        profile = profile.with_limit(asked.limit)
    if is_address(asked.data):
        asked = replace(asked, data=str(bring_to_cache(parse(asked.data), workspace.data)))
    lab = Lab(name, profile, workspace, asked)
    if lab.offline:
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    print(f"Lab {name} · profile {profile.name} · model {lab.model_source} · workspace {lab.workspace.root}")
    print(f"This machine: {hardware.this_machine().label}")
    pacing.say_before_long_cells(workspace, name, profile.name)
    return lab
