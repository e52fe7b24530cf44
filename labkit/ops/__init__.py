"""The command line's work: run labs, report, examine this machine. Here: plain text for terminal and pages."""

from __future__ import annotations

import re
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """An aligned table; `right` lists the columns (from 0) whose cells are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for line in [header, ["-" * width for width in widths], *rows]:
        padded = [text.rjust(widths[i]) if i in right else text.ljust(widths[i]) for i, text in enumerate(line)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def size(count: float | None) -> str:
    """Bytes in decimal units, as disks and model cards count them; "" for none or zero."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count and count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B" if count else ""


def duration(seconds: float) -> str:
    """Seconds for a reader: `48 s`, `3 min 05 s`, `1 h 02 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def number(value: float, stderr: float | None = None) -> str:
    """A measured value with its standard error where there is one."""
    shown = f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}" if abs(value) >= 10 else f"{value:.3f}"
    return shown if stderr is None else f"{shown} ± {stderr:.3f}"


def plain(text: str) -> str:
    """Text without terminal colors and other control characters, which neither XML nor a browser can show."""
    text = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", text)
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)
