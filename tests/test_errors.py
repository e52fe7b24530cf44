"""labkit's own errors say what happened, why it matters and what to do, wherever they are shown."""

from __future__ import annotations

import pickle

import pytest

from labkit import errors
from labkit.errors import LabError, UsageError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LabError)]


def test_an_error_says_what_happened_why_it_matters_and_what_to_do_now() -> None:
    text = str(LabError("limit is -1", why="no rows would be scored", fix="give 0 or more"))
    assert text == "limit is -1\nWhy it matters: no rows would be scored\nNow: give 0 or more"


def test_a_part_that_is_not_given_leaves_no_empty_line() -> None:
    assert str(LabError("limit is -1", fix="give 0 or more")) == "limit is -1\nNow: give 0 or more"
    assert str(LabError("limit is -1")) == "limit is -1"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_survives_the_way_from_one_process_to_another(kind: type[LabError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what", why="why", fix="fix")))  # noqa: S301 (made on this line)
    assert type(error) is kind
    assert (error.what, error.why, error.fix) == ("what", "why", "fix")


def test_there_are_the_kinds_that_callers_tell_apart() -> None:
    names = {kind.__name__ for kind in KINDS}
    assert names >= {"UsageError", "DataError", "CheckpointError", "MissingResult", "CheckFailed", "ProcessFailed"}


def test_a_notebook_shows_the_message_and_no_frames_of_labkit() -> None:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    with capture_output() as captured:
        shell.run_cell("from labkit.errors import UsageError\nraise UsageError('limit is -1', fix='give 0 or more')")
    InteractiveShell.clear_instance()
    assert "UsageError: limit is -1\nNow: give 0 or more" in captured.stdout
    assert "Traceback" not in captured.stdout


def test_a_usage_error_can_be_caught_as_any_lab_error() -> None:
    with pytest.raises(LabError, match="no profile"):
        raise UsageError("there is no profile 'big'")
