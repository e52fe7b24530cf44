"""labkit's own errors say what happened, why it matters and what to do, wherever they are shown."""

from __future__ import annotations

import pickle

import pytest

from labkit import errors
from labkit.errors import LabError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LabError)]


def test_an_error_says_what_happened_why_it_matters_and_what_to_do_now_and_leaves_no_empty_line() -> None:
    text = str(LabError("limit is -1", why="no rows would be scored", fix="give 0 or more"))
    assert text == "limit is -1\nWhy it matters: no rows would be scored\nNow: give 0 or more"
    assert str(LabError("limit is -1", fix="give 0 or more")) == "limit is -1\nNow: give 0 or more"


def test_every_kind_that_callers_tell_apart_survives_the_way_from_one_process_to_another() -> None:
    assert len(KINDS) > 5
    for kind in KINDS:
        error = pickle.loads(pickle.dumps(kind("what", why="why", fix="fix")))  # noqa: S301 (made on this line)
        assert (type(error), error.what, error.why, error.fix) == (kind, "what", "why", "fix")


def test_a_notebook_shows_the_message_and_no_frames_of_labkit(capsys: pytest.CaptureFixture[str]) -> None:
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.instance().run_cell(
        "from labkit.errors import UsageError\nraise UsageError('limit', fix='give 0')"
    )
    InteractiveShell.clear_instance()
    shown = capsys.readouterr().out
    assert "UsageError: limit\nNow: give 0" in shown
    assert "Traceback" not in shown
