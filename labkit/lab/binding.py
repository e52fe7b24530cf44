"""What a lab is bound to: a name, a profile, a workspace, a model; and how it writes measurements down."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit import checkpoint, hardware
from labkit.ledger import Measurement
from labkit.profiles import EMBEDDED, SPEED, Parameters, Profile
from labkit.transfer.address import HUB
from labkit.workspace import Workspace


@dataclass
class Binding:
    """One notebook's name, profile, workspace and parameters."""

    name: str
    profile: Profile
    workspace: Workspace
    parameters: Parameters
    guesses: dict[str, float] = field(default_factory=dict)

    @property
    def model_source(self) -> str:
        """The model as it was named: `tiny`, a folder, a hub id or an address."""
        return self.parameters.model or self.profile.model

    @property
    def embedded(self) -> bool:
        return self.model_source == EMBEDDED

    @property
    def own_model(self) -> bool:
        """Whether this is one of labkit's own models, whose story is known: only then do expectations stop a lab."""
        return self.model_source in (EMBEDDED, SPEED)

    @property
    def offline(self) -> bool:
        """Whether the libraries are told that there is no hub."""
        if any(named.startswith(HUB) for named in (self.model_source, self.parameters.target)):
            return False
        return not self.profile.needs_network or bool(self.parameters.data)

    @property
    def model_name(self) -> str:
        """The model's short name, as the ledger and the checkpoints' folders spell it."""
        return self.model_source if self.own_model else checkpoint.short_name(self.model_source)

    def scratch(self, name: str) -> Path:
        """A place for a folder that only this lab needs, until its end; what an earlier run left there is removed."""
        folder = self._scratches / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def free_scratch(self) -> None:
        """Removes all scratch of this lab; copies of a large model would fill the disk lab by lab."""
        shutil.rmtree(self._scratches, ignore_errors=True)

    @property
    def _scratches(self) -> Path:
        return self.workspace.root / "cache" / self.name

    def log(self, what: str) -> Path:
        """The file that library chatter of one step goes to."""
        return self.workspace.root / "logs" / self.name / f"{what}.log"

    def measurement(self, kind: Any, metric: str, value: float, *, variant: str, **more: Any) -> Measurement:
        """A ledger line of this lab, this model and this machine."""
        return Measurement(
            kind,
            metric,
            float(value),
            variant,
            self.model_name,
            machine=hardware.this_machine().label,
            versions=hardware.stack_versions(),
            lab=self.name,
            run=os.environ.get("LABKIT_RUN", ""),
            **more,
        )

    def record(self, kind: Any, metric: str, value: float, *, variant: str, **more: Any) -> None:
        """Appends one measurement to the ledger."""
        self.workspace.ledger.append([self.measurement(kind, metric, value, variant=variant, **more)])
