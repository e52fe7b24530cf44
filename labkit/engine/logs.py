"""What an engine's log tells of a failure."""

from __future__ import annotations

import re
from pathlib import Path

# vLLM and torch put "(EngineCore pid=7) ERROR 11-21 08:00:00 [core.py:12] " before what they say.
_PREFIX = re.compile(r"^(\([^)]*\)\s*)?((ERROR|WARNING|INFO|CRITICAL) [\d-]+ [\d:.]+ (\[[^\]]*\]\s?)?)?")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w]*\.)*[A-Za-z_]\w*(Error|Exception|Exit|Interrupt|Missing|Failed)\b(:.*)?$")
_OTHER = re.compile(r"(Segmentation fault|out of memory|No module named|No space left|^cannot start )", re.IGNORECASE)
_ECHO = re.compile(r"See (the )?(root cause|stack trace) above|Engine core (proc|initialization)")


def telling_lines(log: Path, began: int = 0, most: int = 6) -> list[str]:
    """The lines of a log, from byte `began` on, that say why a program failed: its exceptions, first cause first.

    The end of an engine's log is teardown noise and echoes of the error; the exception lines are what a reader needs.
    """
    if not log.exists():
        return []
    with open(log, "rb") as file:
        file.seek(max(began, log.stat().st_size - 2**20))
        text = file.read().decode(errors="replace").replace("\r", "\n")
    plain = [_PREFIX.sub("", line).strip() for line in text.splitlines()]
    found = [line for line in plain if _EXCEPTION.match(line) or _OTHER.search(line)]
    causes = [line for line in dict.fromkeys(found) if not _ECHO.search(line)] or list(dict.fromkeys(found))
    return [line if len(line) <= 500 else line[:497] + "..." for line in causes[:most]] or [
        line for line in plain if line
    ][-most:]
