"""The templates of all pages; whatever is put into one is escaped."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.ops.text import duration, number, size

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent


def filled(template: str, **values: Any) -> str:
    """A template of this folder with its values put in."""
    return _environment().get_template(f"{template}.html.j2").render(**values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(size=size, duration=duration, number=number)
    return environment
