"""What an explorer is: controls, and a figure for each state of them. It knows nothing of notebooks or widgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from labkit.errors import UsageError
from labkit.figures import Figure


@dataclass(frozen=True)
class Slider:
    """A number between `low` and `high` in steps, at first `value`. power: shown and handed on as 2 to that number."""

    label: str
    low: float
    high: float
    step: float
    value: float
    power: bool = False

    def check(self, value: Any) -> None:
        if not isinstance(value, (int, float)) or not self.low <= value <= self.high:
            raise UsageError(f"{self.label} is {value!r}", fix=f"give a number from {self.low:g} to {self.high:g}")


@dataclass(frozen=True)
class Choice:
    """One of `options`, at first `value`."""

    label: str
    options: tuple[str, ...]
    value: str

    def check(self, value: Any) -> None:
        if value not in self.options:
            raise UsageError(f"{self.label} is {value!r}", fix=f"give one of: {', '.join(self.options)}")


@dataclass(frozen=True)
class Explorer:
    """Controls by name, and `draw`, which takes a value for each of them and gives the figure with its description.

    Data is captured when the explorer is made, so that `draw` computes only what a control changes.
    """

    controls: Mapping[str, Slider | Choice]
    draw: Callable[..., Figure]

    @property
    def default(self) -> dict[str, Any]:
        """The state that is drawn at first, and the only one without a front end."""
        return {name: control.value for name, control in self.controls.items()}

    def at(self, **state: Any) -> Figure:
        """The figure of a state; what is not named is as at first. Raises UsageError for a value out of its range."""
        if unknown := state.keys() - self.controls.keys():
            raise UsageError(
                f"there is no control {', '.join(sorted(unknown))}", fix=f"use: {', '.join(self.controls)}"
            )
        whole = {**self.default, **state}
        for name, control in self.controls.items():
            control.check(whole[name])
        return self.draw(
            **{
                name: 2.0 ** whole[name] if isinstance(control, Slider) and control.power else whole[name]
                for name, control in self.controls.items()
            }
        )
