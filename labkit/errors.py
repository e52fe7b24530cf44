"""The errors that labkit raises on purpose: what happened, why it matters, what to do now.

Each says all three, with the value that caused it, so that nobody has to read a traceback to go on.
"""

from __future__ import annotations


class LabError(Exception):
    """The root of labkit's own errors.

    what: what happened, with the value. why: why that matters (may be empty). fix: what to do now.
    """

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(what, why, fix)  # all three, so that the error survives pickling between processes

    def __str__(self) -> str:
        parts = [self.what, f"Why it matters: {self.why}" if self.why else "", f"Now: {self.fix}" if self.fix else ""]
        return "\n".join(filter(None, parts))

    def _render_traceback_(self) -> list[str]:
        """What IPython prints in a notebook: the message, not the frames of labkit."""
        return [f"{type(self).__name__}: {self}"]


class UsageError(LabError):
    """A parameter, name or option that does not exist or does not fit; nothing was run."""


class DataError(LabError):
    """A data file or row that can't be used as asked."""


class CheckpointError(LabError):
    """A checkpoint that is missing, damaged or not what it says it is."""


class MissingResult(LabError):
    """What another lab makes is not in this workspace yet."""


class TransferError(LabError):
    """A place that can't be reached, refuses, or broke off; what has arrived is kept, and a next try goes on there."""


class CheckFailed(LabError):
    """A lab's check found something that must not be; stops a headless run."""


class ProcessFailed(LabError):
    """A supervised child ended badly, or not at all in its time."""


class Unsupported(LabError):
    """This machine or engine can't do that; the reason is a row of the capability matrix."""


def first_line(error: Exception) -> str:
    """The first line of an error's message, short enough for a message of ours."""
    return (str(error).strip().splitlines() or ["no message"])[0][:300]
